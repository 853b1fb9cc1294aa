"""Shape and place of every tap's map, learnt from a model's configs alone: a pass without data, and no weights."""

import math
from typing import Any

import torch

from ...cache.schema import TapSpec
from ...errors import ModelError
from .images import RGB_STRIDE
from .models import ModelFolder
from .settings import RGB, ExtractSettings
from .taps import find_taps, run_to_taps

__all__ = ["tap_specs", "vae_factor"]


def vae_factor(config: Any) -> int:
    """Pixels that one cell of the latent spans, from the autoencoder's config."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def tap_specs(model: ModelFolder, settings: ExtractSettings) -> dict[str, TapSpec]:
    """Tap -> its shape and where the image lies on it, in the order of ``settings.taps``.

    Raises:
        ModelError: the UNet lacks a tap, or cannot take images of this size.
    """
    from diffusers import UNet2DConditionModel

    height, width = settings.image_size
    factor = vae_factor(model.config("vae"))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(model.config("unet")).eval()
    taps = find_taps(unet, settings.diffusion_taps)
    strides = {tap.name: tap.stride * factor for tap in taps}
    latents = torch.empty(1, unet.config.in_channels, -(-height // factor), -(-width // factor), device="meta")
    text = torch.empty(1, 1, unet.config.cross_attention_dim, device="meta")
    try:
        with torch.inference_mode():
            found = run_to_taps(taps, lambda: unet(latents, torch.tensor(0, device="meta"), text))
    except RuntimeError as error:
        raise ModelError(
            f"The UNet of {model.path} cannot take images of {height}x{width} pixels ({error}); "
            "choose a larger extract.image_size"
        ) from error
    specs = {}
    for name in settings.taps:
        channels, rows, columns = (3, math.inf, math.inf) if name == RGB else found[name].shape[1:]
        stride = RGB_STRIDE if name == RGB else strides[name]
        extent = (height / stride, width / stride)
        specs[name] = TapSpec(
            name=name,
            channels=channels,
            height=int(min(rows, math.ceil(extent[0]))),
            width=int(min(columns, math.ceil(extent[1]))),
            extent=extent,
            dtype="uint8" if name == RGB else "float16",
        )
    return specs
