"""The frozen diffusion backbone: image -> latent -> UNet, read at its taps and stopped at the last one.

Widths, strides, the latent's scale and the text width are read from the configs of the model. Noise for timesteps above
0 is mixed in by the model's own scheduler table. ``torch.compile`` compiles blocks one by one, because a forward pass
ends at its last tap in the middle of the UNet.
"""

import hashlib
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import BackendError, ModelError
from .images import FeatureMaps, Pictures, pad_to_multiple
from .models import ModelFolder
from .packing import pack_layers
from .precision import has_native_support, resolve_dtype, warn_if_slow
from .settings import ExtractSettings
from .taps import crop_maps, find_taps, run_to_taps, tap_specs, vae_factor
from .weights import load_text_encoder, load_tokenizer, load_unet, load_vae_encoder

__all__ = ["PROMPT", "DiffusionBackbone", "add_noise"]

PROMPT = ""
VARIANTS = 128  #: compiled versions of one kind of block; torch's default limit is eight

#: what of a scheduler's config decides how much noise a timestep has
BETA_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


class DiffusionBackbone:
    """A frozen model with taps, ready to run on ``device``; see ``ExtractSettings`` for what each setting means.

    ``specs``: tap -> its shape and position on the image, in the order of ``settings.taps``.
    ``prediction_type``: the training target of the UNet ("epsilon" or "v_prediction"); features are read the same way.

    Raises:
        ModelError: the model is damaged, needs other inputs than an image and a text, or lacks a tap.
    """

    def __init__(self, *, model: ModelFolder, settings: ExtractSettings, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        name = resolve_dtype(settings, model)
        warn_if_slow(name, device)
        self.dtype = getattr(torch, name)
        self.prediction_type = str(model.config("scheduler").get("prediction_type") or "epsilon")
        _check_unet(model)
        self._noise = _scheduler_noise(model, settings.timestep) if settings.noise else None
        self._text = _encode_prompt(model).to(device, self.dtype)
        # Channels-last is faster in half precision; float32 keeps the stock layout and with it the stock bits.
        layout = torch.contiguous_format if self.dtype == torch.float32 else torch.channels_last
        self.vae = load_vae_encoder(model, self.dtype).to(device=device, memory_format=layout)
        self.unet = load_unet(model, self.dtype).to(device=device, memory_format=layout)
        if self._text.shape[-1] != self.unet.config.cross_attention_dim:
            raise ModelError(
                f"The text encoder of {model.path} gives {self._text.shape[-1]} values a token, its UNet wants "
                f"{self.unet.config.cross_attention_dim}; the parts belong to different models"
            )
        self.vae_factor = vae_factor(self.vae.config)
        self.taps = find_taps(self.unet, settings.map_taps)
        if (
            device.type == "cpu"
            and self.dtype != torch.float32
            and has_native_support(name, device)
            and not settings.compile
        ):
            pack_layers(self.vae, in_place=True)
            pack_layers(self.unet, [tap.module for tap in self.taps])
        if settings.compile:
            for module in (self.vae, self.unet):
                _compile_blocks(module, [tap.module for tap in self.taps], device)
        self.specs = tap_specs(model, settings)

    @torch.inference_mode()
    def __call__(self, pictures: Pictures, keys: Sequence[str]) -> FeatureMaps:
        """Computes every tap of a batch of pictures of ``settings.image_size``; ``keys`` name the images for the noise.

        Returns the UNet's maps in float32 and ``rgb`` in uint8, cropped to the cells inside the image, on the device.
        """
        pictures = pictures.to(self.device)
        latents = self.encode(pictures)
        found = self._features(latents, keys, 0)
        for draw in range(1, self.settings.draws):
            again = self._features(latents, keys, draw)
            found = {name: values + again[name] for name, values in found.items()}
        found = {name: values / self.settings.draws for name, values in found.items()}
        return crop_maps(found, pictures, self.specs)

    @torch.inference_mode()
    def encode(self, pictures: Pictures) -> Float[Tensor, "batch latent _h _w"]:
        """Encodes pictures to the scaled posterior mean of the autoencoder; sides are padded to its factor first."""
        images = pad_to_multiple(pictures.to(torch.float32) / 255.0 * 2.0 - 1.0, self.vae_factor)
        mean = self.vae.encode(images.to(self.dtype)).latent_dist.mean
        shift = self.vae.config.shift_factor
        return (mean if shift is None else mean - shift) * self.vae.config.scaling_factor

    def _features(self, latents: Tensor, keys: Sequence[str], draw: int) -> dict[str, Tensor]:
        """Computes the UNet's maps in float32 with one draw of the noise, if any."""
        if self._noise is not None:
            latents = add_noise(latents, keys, self._noise, self.settings.noise_seed, draw)
        found = run_to_taps(self.taps, lambda: self._run_unet(latents))
        return {name: values.to(torch.float32) for name, values in found.items()}

    def _run_unet(self, latents: Tensor) -> None:
        timestep = torch.tensor(self.settings.timestep, device=self.device)
        self.unet(latents, timestep, encoder_hidden_states=self._text.expand(len(latents), -1, -1))


def _check_unet(model: ModelFolder) -> None:
    """Raises for UNets that need other inputs than a latent and a text."""
    unet, vae = model.config("unet"), model.config("vae")
    wants = [
        key
        for key in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
        if unet.get(key) is not None
    ]
    if wants:
        raise ModelError(
            f"The UNet of {model.path} needs conditions beside the text ({', '.join(wants)}), which stage one does not "
            "have; use a Stable Diffusion 1.x or 2.x model"
        )
    if unet.get("in_channels", 4) != vae.get("latent_channels", 4):
        raise ModelError(
            f"The UNet of {model.path} takes {unet.get('in_channels', 4)} channels, its autoencoder makes "
            f"{vae.get('latent_channels', 4)}; inpainting and upscaling models do not fit"
        )


@torch.inference_mode()
def _encode_prompt(model: ModelFolder) -> Float[Tensor, "1 tokens width"]:
    """Encodes the empty prompt in float32; tokenizer and text encoder are freed afterwards."""
    tokenizer, encoder = load_tokenizer(model), load_text_encoder(model)
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer([PROMPT], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    return encoder(tokens.input_ids, attention_mask=mask).last_hidden_state.clone()


def _scheduler_noise(model: ModelFolder, timestep: int) -> tuple[float, float] | None:
    """Returns the weights of latent and noise at ``timestep`` by the model's own scheduler; ``None`` at step 0.

    Raises:
        ModelError: the scheduler has no such step, or does not mix latents and noise by a table of betas.
    """
    from diffusers import DDPMScheduler

    if timestep == 0:
        return None
    config = model.config("scheduler")
    if "beta_schedule" not in config:
        raise ModelError(
            f"The scheduler of {model.path} ({config.get('_class_name')}) has no beta schedule, so noise at step "
            f"{timestep} is not defined; set extract.timestep to 0"
        )
    kept = DDPMScheduler.from_config({key: config[key] for key in BETA_KEYS if key in config}).alphas_cumprod
    if timestep >= len(kept):
        raise ModelError(f"extract.timestep is {timestep}, the scheduler of {model.path} ends at {len(kept) - 1}")
    return float(kept[timestep].sqrt()), float((1.0 - kept[timestep]).sqrt())


def add_noise(
    latents: Float[Tensor, "batch latent height width"],
    keys: Sequence[str],
    weights: tuple[float, float],
    seed: int,
    draw: int = 0,
) -> Float[Tensor, "batch latent height width"]:
    """Mixes latents with standard normal noise that depends on ``seed``, each image's key and ``draw`` only.

    ``weights`` are those of latent and noise. The noise is drawn by numpy, so any machine and batch gets the same.
    """
    draws = []
    for key in keys:
        words = np.frombuffer(hashlib.sha256(key.encode()).digest(), np.uint32).tolist()
        generator = np.random.default_rng([seed, *words, *([draw] if draw else [])])
        draws.append(generator.standard_normal(latents.shape[1:], dtype=np.float32))
    return latents * weights[0] + torch.from_numpy(np.stack(draws)).to(latents) * weights[1]


def _compile_blocks(model: nn.Module, tapped: Collection[nn.Module], device: torch.device) -> None:
    """Compiles every ResNet and transformer of ``model``, except those that contain a module of ``tapped``.

    Raises:
        BackendError: torch finds no compiler for ``device``.
    """
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    _check_compiler(device)
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    inside = set(tapped)
    for block in model.modules():
        if isinstance(block, ResnetBlock2D | Transformer2DModel) and not inside.intersection(list(block.modules())[1:]):
            block.forward = torch.compile(block.forward, dynamic=False)


def _check_compiler(device: torch.device) -> None:
    """Checks for a compiler now; torch would only fail at the first image."""
    missing = None
    if device.type == "cpu":
        if " " in torch.__file__:  # torch hands its compiler command lines without quotes
            raise BackendError(
                f"extract.compile cannot link what it compiles: torch lies in a folder with a space in its path "
                f"({torch.__file__}); install into another folder, or set extract.compile=false"
            )
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            missing = f"a C++ compiler ({error})"
    elif find_spec("triton") is None:
        missing = "the package triton"
    if missing:
        raise BackendError(f"extract.compile lacks {missing}; install it, or set extract.compile=false")
