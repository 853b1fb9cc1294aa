"""Compiles the repeated blocks of a model with ``torch.compile``.

Blocks are compiled one by one, because a forward pass ends at its last tap in the middle of the UNet.
"""

from collections.abc import Collection
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ...errors import BackendError

__all__ = ["compile_blocks"]

VARIANTS = 128  #: compiled versions of one kind of block; torch's default limit is eight


def compile_blocks(model: nn.Module, tapped: Collection[nn.Module], device: torch.device) -> None:
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
