"""The arithmetic the model runs in: what a device is fast at, and which precision ``auto`` stands for.

A processor without units for bfloat16 or float16 multiplies hundreds of times slower in them than in float32.
"""

import logging
import platform
import time

import torch

from ...processes import select_device
from .models import ModelFolder
from .settings import ExtractSettings

__all__ = ["is_fast", "precisions", "resolve_dtype", "warn_if_slow"]

WIDE_UNET = 512  #: channels of the widest block from which a UNet counts as full-size
PROBE = 192  #: rows and columns of the product that a slow precision is timed with

log = logging.getLogger(__name__)


def is_fast(dtype: str, device: torch.device) -> bool:
    """Whether ``device`` has units for matrix products in ``dtype``."""
    if dtype == "float32":
        return True
    if device.type == "cuda":
        return dtype == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == "float16":
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    emulates = platform.machine() in ("x86_64", "AMD64") and not (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not emulates


def precisions(settings: ExtractSettings, model: ModelFolder | None) -> tuple[str, ...]:
    """Every dtype that the settings allow for ``model``, the one to choose on this machine first.

    One that is set is the only one. ``auto`` allows bfloat16 and float32 for a full-size UNet, float32 for a small one.
    A model that is not here (None) may be a full-size one.
    """
    if settings.dtype != "auto":
        return (settings.dtype,)
    widths = model.config("unet").get("block_out_channels") if model else [WIDE_UNET]
    if not isinstance(widths, list) or max(widths) < WIDE_UNET:
        return ("float32",)
    return ("bfloat16", "float32") if _will_be_fast("bfloat16", settings) else ("float32", "bfloat16")


def _will_be_fast(dtype: str, settings: ExtractSettings) -> bool:
    """Whether the device of the settings has units for ``dtype``; a GPU that is asked for and not here is elsewhere."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        return True
    return is_fast(dtype, select_device(settings.device))


def resolve_dtype(settings: ExtractSettings, model: ModelFolder) -> str:
    """Name the dtype that ``model`` runs in on this machine."""
    return precisions(settings, model)[0]


def warn_if_slow(dtype: str, device: torch.device) -> None:
    """Log how much slower than float32 a precision is that the device has no units for."""
    if is_fast(dtype, device):
        return
    factor = _product_seconds(dtype, device) / _product_seconds("float32", device)
    log.warning(
        "This %s has no units for %s: matrix products take about %.0f times as long as in float32. "
        "Unless a cache is to be finished in it, set extract.dtype to auto or float32",
        "processor" if device.type == "cpu" else "GPU",
        dtype,
        factor,
    )


def _product_seconds(dtype: str, device: torch.device) -> float:
    """Seconds of a small matrix product in ``dtype``, the best of three."""
    values = torch.ones(PROBE, PROBE, dtype=getattr(torch, dtype), device=device)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        (values @ values)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
