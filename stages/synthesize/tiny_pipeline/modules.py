"""The five parts of the tiny pipeline, with seeded initial weights, and their export in diffusers' folder layout.

Together they have at most 6 M parameters, so that the folder stays below 12 MB in float16. The UNet has the block types
of Stable Diffusion (its taps carry the same names); the autoencoder divides the sides by 4, not by 8, because the
pictures are small.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ....files import read_json, write_bytes, write_json

__all__ = [
    "LATENT_CHANNELS",
    "LATENT_STRIDE",
    "build_scheduler",
    "build_text_encoder",
    "build_tokenizer",
    "build_unet",
    "build_vae",
    "empty_prompt",
    "export_pipeline",
]

LATENT_CHANNELS = 8
"""Twice Stable Diffusion's: with 4 the pictures of small vehicles are not sharp at this stride."""

LATENT_STRIDE = 4

TEXT_WIDTH = 64
TEXT_LENGTH = 8
START, END = "<|startoftext|>", "<|endoftext|>"
#: the class of each part; none for the safety checker
MODEL_INDEX: dict[str, object] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
READABLE = 0o644


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        yield


def build_vae(seed: int) -> AutoencoderKL:
    """Builds the autoencoder, 1.6 M parameters; its posterior starts narrow, so that latents have little noise."""
    widths = (16, 64, 96)
    with _seeded(seed):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=8,
            mid_block_add_attention=False,
            sample_size=224,
        )
    with torch.no_grad():
        vae.quant_conv.bias[LATENT_CHANNELS:] = -5.0
    return vae


def build_unet(seed: int) -> UNet2DConditionModel:
    """Builds the UNet, 4.1 M parameters; its default sample is 56 x 100 latents, a picture of 224 x 400."""
    with _seeded(seed):
        return UNet2DConditionModel(
            sample_size=(56, 100),
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64, 96, 112),
            layers_per_block=1,
            attention_head_dim=(1, 2, 3, 4),
            cross_attention_dim=TEXT_WIDTH,
            norm_num_groups=16,
        )


def build_text_encoder(seed: int) -> CLIPTextModel:
    """Builds the text encoder, 0.1 M parameters. It is never trained: every picture has the empty prompt."""
    config = CLIPTextConfig(
        vocab_size=2 * 256 + 2,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=2 * 256,
        eos_token_id=2 * 256 + 1,
        pad_token_id=2 * 256 + 1,
    )
    with _seeded(seed):
        return CLIPTextModel(config).eval()


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes the files of a byte-level tokenizer without merges into ``folder`` and loads it from there."""
    characters = _byte_characters()
    tokens = [*characters, *(f"{character}</w>" for character in characters), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    write_bytes(folder / "merges.txt", b"#version: 0.2\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"model_max_length": TEXT_LENGTH, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", {**settings, **special})
    write_json(folder / "special_tokens_map.json", special)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def build_scheduler() -> DDIMScheduler:
    """Builds the noise schedule of Stable Diffusion 2: scaled linear, 1000 steps, v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def empty_prompt(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> Float[Tensor, "1 tokens width"]:
    """Encodes the empty prompt as ``StableDiffusionPipeline`` does."""
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    with torch.no_grad():
        return text_encoder(tokens.input_ids)[0]


def export_pipeline(
    *, vae: AutoencoderKL, unet: UNet2DConditionModel, scaling_factor: float, seed: int, folder: Path
) -> Path:
    """Writes the pipeline to ``folder`` and returns it; files of the same names are replaced.

    ``scaling_factor`` brings the latents to unit deviation; the stored config of the autoencoder gets it. ``seed`` is
    that of the text encoder, which is not trained. ``StableDiffusionPipeline.from_pretrained`` loads ``folder``.
    """
    vae = copy.deepcopy(vae).half()
    vae.register_to_config(scaling_factor=round(scaling_factor, 5))
    vae.save_pretrained(folder / "vae")
    copy.deepcopy(unet).half().save_pretrained(folder / "unet")
    build_text_encoder(seed).half().save_pretrained(folder / "text_encoder")
    config = folder / "text_encoder" / "config.json"
    # transformers loads in the stored dtype, diffusers in float32
    write_json(config, {**read_json(config), "dtype": "float32"})
    build_tokenizer(folder / "tokenizer")
    build_scheduler().save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", MODEL_INDEX | {"_diffusers_version": diffusers.__version__})
    for file in folder.rglob("*.safetensors"):
        file.chmod(READABLE)
    return folder


def _byte_characters() -> list[str]:
    """Lists the printable character that stands for each of the 256 bytes in byte-level tokenizers (as in GPT-2)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + hidden.index(byte)) for byte in range(256)]
