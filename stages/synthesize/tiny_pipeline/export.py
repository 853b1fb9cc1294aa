"""Writes the trained parts in diffusers' folder layout, in float16; loading needs no internet access."""

import copy
from pathlib import Path

import diffusers
from diffusers import AutoencoderKL, UNet2DConditionModel

from ....files import read_json, write_json
from .modules import build_scheduler, build_text_encoder, build_tokenizer

__all__ = ["export_pipeline"]

READABLE = 0o644


def export_pipeline(
    *, vae: AutoencoderKL, unet: UNet2DConditionModel, scaling_factor: float, seed: int, folder: Path
) -> Path:
    """Write the pipeline to ``folder`` and return it; files of the same names are replaced.

    Args:
        vae: the trained autoencoder; its stored config gets ``scaling_factor``.
        unet: the trained UNet.
        scaling_factor: brings the latents to unit deviation.
        seed: of the text encoder, which is not trained.
        folder: the argument of ``StableDiffusionPipeline.from_pretrained``.
    """
    vae = copy.deepcopy(vae).half()
    vae.register_to_config(scaling_factor=round(scaling_factor, 5))
    vae.save_pretrained(folder / "vae")
    copy.deepcopy(unet).half().save_pretrained(folder / "unet")
    build_text_encoder(seed).half().save_pretrained(folder / "text_encoder")
    _load_in_float32(folder / "text_encoder" / "config.json")
    build_tokenizer(folder / "tokenizer")
    build_scheduler().save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", _model_index())
    for file in folder.rglob("*.safetensors"):
        file.chmod(READABLE)
    return folder


def _load_in_float32(config: Path) -> None:
    """Set float32 in a transformers config: transformers loads in the stored dtype, diffusers in float32."""
    write_json(config, {**read_json(config), "dtype": "float32"})


def _model_index() -> dict[str, object]:
    """Return the class of each part; none for the safety checker."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
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
