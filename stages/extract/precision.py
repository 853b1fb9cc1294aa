"""The precision of the model: which dtypes a device supports in hardware, and what ``auto`` selects.

Without hardware support, bfloat16 and float16 products are hundreds of times slower than float32.
"""

import logging
import platform
import time
from typing import Any

import torch

from ...errors import ModelError
from ...processes import select_device
from .model_files import read_facts
from .models import ModelFolder
from .settings import ExtractSettings

__all__ = ["has_native_support", "precisions", "resolve_dtype", "warn_if_slow"]

WIDE = 512  #: channels of the widest block from which a network counts as full-size
PROBE = 192  #: rows and columns of the product that a slow precision is timed with

log = logging.getLogger(__name__)


def has_native_support(dtype: str, device: torch.device) -> bool:
    """Returns whether ``device`` has hardware support for matrix products in ``dtype``."""
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
    """Returns every dtype that the settings allow for ``model``, the preferred one on this machine first.

    An explicit dtype is the only one. ``auto`` allows bfloat16 and float32 for a full-size network, float32 for a small
    one and for an ONNX file. A model that is not available (None) counts as full-size.

    Raises:
        ModelError: another dtype than float32 is asked of an ONNX file.
    """
    if settings.dtype != "auto":
        if model is not None and model.kind == "onnx" and settings.dtype != "float32":
            raise ModelError(f"extract.dtype is {settings.dtype}, and {model.path} runs in float32; set it to auto")
        return (settings.dtype,)
    if model is not None and _widest(model) < WIDE:
        return ("float32",)
    absent = settings.device == "cuda" and not torch.cuda.is_available()  # a GPU that is not there counts as fast
    fast = absent or has_native_support("bfloat16", select_device(settings.device))
    return ("bfloat16", "float32") if fast else ("float32", "bfloat16")


def _widest(model: ModelFolder) -> int:
    """Returns the channels of the widest block of a network; 0 for an ONNX file."""
    widths: list[int] = []
    if model.kind == "transformers":
        facts = read_facts(model.path / "config.json")
        facts = facts.get("vision_config") or facts
        doublings = max(0, len(_whole_numbers(facts.get("depths"))) - 1)
        widths = [
            *_whole_numbers(facts.get("hidden_sizes")),
            *_whole_numbers(facts.get("hidden_size")),
            *(width << doublings for width in _whole_numbers(facts.get("embed_dim"))),
        ]
    elif model.kind == "diffusers":
        widths = _whole_numbers(model.config("unet").get("block_out_channels"))
    return max(widths, default=0)


def _whole_numbers(found: Any) -> list[int]:
    """Returns the whole numbers of a field of a config, which may be one number, a list or absent."""
    return [value for value in (found if isinstance(found, list) else [found]) if isinstance(value, int)]


def resolve_dtype(settings: ExtractSettings, model: ModelFolder) -> str:
    """Returns the dtype of ``model`` on this machine.

    Raises:
        ModelError: another dtype than float32 is asked of an ONNX file.
    """
    return precisions(settings, model)[0]


def warn_if_slow(dtype: str, device: torch.device) -> None:
    """Logs how much slower than float32 an unsupported precision is on the device."""
    if has_native_support(dtype, device):
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
    """Measures the seconds of a small matrix product in ``dtype``, the best of three."""
    values = torch.ones(PROBE, PROBE, dtype=getattr(torch, dtype), device=device)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        (values @ values)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
