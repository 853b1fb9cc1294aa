"""Which library computes sparse convolutions, and why."""

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
    """What a sparse convolution library must do; weights are KRSC, [out, k, k, k, in]."""

    @property
    def name(self) -> str:
        """The name in settings and logs."""

    def submanifold(self, x: SparseTensor, weight: Float[Tensor, "out k k k in"]) -> SparseTensor:
        """Odd kernel, output on the input's voxels."""

    def down(self, x: SparseTensor, weight: Float[Tensor, "out 2 2 2 in"]) -> SparseTensor:
        """Kernel 2, stride 2, to the next level; an odd extent is padded by one empty plane."""

    def inverse(self, x: SparseTensor, weight: Float[Tensor, "out 2 2 2 in"]) -> SparseTensor:
        """Back to the voxels, and their order, that the matching ``down`` read."""


@dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """A backend and the reason it was taken, for the doctor and the run's log.

    ``unserved`` says that spconv is installed and has no kernels for the GPU that is here.
    """

    name: Literal["torch", "spconv"]
    reason: str
    unserved: bool = False


def choose_backend(name: str, device: torch.device | str) -> BackendChoice:
    """Settle ``auto`` and check that a named backend can serve ``device``; torch is never replaced.

    ``auto`` takes spconv on CUDA where a GPU build is installed that was compiled for the GPU, and torch anywhere else.

    Raises:
        BackendError: unknown name, or spconv was asked for and is missing, known to be wrong, or not made for the GPU.
    """
    if name not in NAMES:
        raise BackendError(f"Unknown sparse backend '{name}'; {nearest(name, NAMES)}")
    if name == "torch":
        return BackendChoice(name="torch", reason="asked for by name")
    device = torch.device(device)
    if name == "auto" and device.type != "cuda":
        return BackendChoice(name="torch", reason=f"the device is {device.type}, where torch is the default")
    build, missing = installed_build()
    fault = missing or gpu_fault(build, device)
    if name == "spconv":
        if fault:
            raise BackendError(f"The spconv backend cannot be used: {fault}, or set model.backend=torch")
        return BackendChoice(name="spconv", reason=f"asked for by name; {build} is installed")
    if fault:
        return BackendChoice(name="torch", reason=f"spconv cannot be used: {fault}", unserved=not missing)
    return BackendChoice(name="spconv", reason=f"the device is cuda and {build} is installed")


def make_backend(name: str, device: torch.device | str) -> Backend:
    """Open the backend that ``choose_backend`` settles on; spconv takes about 5 s to import.

    Where ``auto`` passes over an installed spconv, because it does not serve the GPU or does not import, it says so
    once.

    Raises:
        BackendError: as ``choose_backend``, or spconv was asked for and does not import.
    """
    from .torch_backend import TorchBackend

    choice = choose_backend(name, device)
    if choice.unserved:
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
    """Say once in the life of the process why the torch backend stands in."""
    log.warning("Sparse convolutions are computed by the torch backend: %s", reason)
