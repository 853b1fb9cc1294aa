"""Chooses the backend that computes sparse convolutions."""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ....errors import BackendError, nearest
from .spconv_build import gpu_fault, installed_build
from .tensor import SparseTensor

__all__ = ["Backend", "BackendChoice", "choose_backend", "make_backend"]

log = logging.getLogger(__name__)

NAMES = ("auto", "torch", "spconv")


@runtime_checkable
class Backend(Protocol):
    """Interface of a sparse convolution library; weights are KRSC, [out, k, k, k, in]."""

    @property
    def name(self) -> str:
        """Name in settings and logs."""

    def submanifold(self, x: SparseTensor, weight: Float[Tensor, "out k k k in"]) -> SparseTensor:
        """Submanifold convolution with an odd kernel: output on the input's voxels."""

    def down(self, x: SparseTensor, weight: Float[Tensor, "out 2 2 2 in"]) -> SparseTensor:
        """Convolution with kernel 2 and stride 2 to the next level; an odd extent is padded by one empty plane."""

    def inverse(self, x: SparseTensor, weight: Float[Tensor, "out 2 2 2 in"]) -> SparseTensor:
        """Inverse convolution to the voxels of the input of the matching ``down``, in their order."""


@dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """A backend and the reason for the choice, for ``xd3d doctor`` and the log.

    ``gpu_unsupported``: spconv is installed, but has no kernels for this GPU.
    """

    name: Literal["torch", "spconv"]
    reason: str
    gpu_unsupported: bool = False


def choose_backend(name: str, device: torch.device | str) -> BackendChoice:
    """Resolves ``auto``, and checks that a named backend works on ``device``.

    ``auto`` is spconv on CUDA if a build that was compiled for the GPU is installed, and torch otherwise.

    Raises:
        BackendError: the name is unknown, or spconv was requested and is missing, a faulty build, or not compiled for
            the GPU.
    """
    if name not in NAMES:
        raise BackendError(f"Unknown sparse backend '{name}'; {nearest(name, NAMES)}")
    if name == "torch":
        return BackendChoice(name="torch", reason="requested by name")
    device = torch.device(device)
    if name == "auto" and device.type != "cuda":
        return BackendChoice(name="torch", reason=f"the device is {device.type}, where torch is the default")
    build, missing = installed_build()
    fault = missing or gpu_fault(build, device)
    if name == "spconv":
        if fault:
            raise BackendError(f"The spconv backend cannot be used: {fault}, or set model.backend=torch")
        return BackendChoice(name="spconv", reason=f"requested by name; {build} is installed")
    if fault:
        return BackendChoice(name="torch", reason=f"spconv cannot be used: {fault}", gpu_unsupported=not missing)
    return BackendChoice(name="spconv", reason=f"the device is cuda and {build} is installed")


def make_backend(name: str, device: torch.device | str) -> Backend:
    """Creates the backend that ``choose_backend`` chooses; spconv takes about 5 s to import.

    If ``auto`` cannot use an installed spconv, a warning is logged once.

    Raises:
        BackendError: as ``choose_backend``, or spconv was requested and does not import.
    """
    from .torch_backend import TorchBackend

    choice = choose_backend(name, device)
    if choice.gpu_unsupported:
        _warn(choice.reason)
    if choice.name == "torch":
        return TorchBackend()
    try:
        from .spconv_backend import SpconvBackend
    except BackendError as error:
        if name != "auto":
            raise
        _warn(f"spconv cannot be used: {error}")
        return TorchBackend()
    return SpconvBackend()


@cache
def _warn(reason: str) -> None:
    """Logs once per process why the torch backend is used."""
    log.warning("Sparse convolutions are computed by the torch backend: %s", reason)
