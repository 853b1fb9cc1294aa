"""Which library computes sparse convolutions, and why."""

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ....errors import BackendError, nearest
from .tensor import SparseTensor

__all__ = ["Backend", "BackendChoice", "choose_backend", "make_backend"]

CPU_WHEEL = "spconv"  # the plain name on PyPI is a CPU build that races between threads
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
    """A backend and the reason it was taken, for the doctor and the run's log."""

    name: Literal["torch", "spconv"]
    reason: str


def choose_backend(name: str, device: torch.device | str) -> BackendChoice:
    """Settle ``auto`` and check that a named backend can serve ``device``; imports nothing.

    ``auto`` takes spconv on CUDA where a GPU build is installed, and torch anywhere else.

    Raises:
        BackendError: unknown name, or spconv was asked for and is missing or known to be wrong.
    """
    if name not in NAMES:
        raise BackendError(f"Unknown sparse backend '{name}'; {nearest(name, NAMES)}")
    if name == "torch":
        return BackendChoice(name="torch", reason="asked for by name")
    build, fault = _spconv_build()
    if name == "spconv":
        if fault:
            raise BackendError(f"The spconv backend cannot be used: {fault}, or set model.backend=torch")
        return BackendChoice(name="spconv", reason=f"asked for by name; {build} is installed")
    if torch.device(device).type != "cuda":
        return BackendChoice(
            name="torch", reason=f"the device is {torch.device(device).type}, where torch is the default"
        )
    if fault:
        return BackendChoice(name="torch", reason=f"spconv cannot be used: {fault}")
    return BackendChoice(name="spconv", reason=f"the device is cuda and {build} is installed")


def make_backend(name: str, device: torch.device | str) -> Backend:
    """Open the backend that ``choose_backend`` settles on; spconv takes about 5 s to import.

    Raises:
        BackendError: as ``choose_backend``, or spconv does not import.
    """
    if choose_backend(name, device).name == "torch":
        from .torch_backend import TorchBackend

        return TorchBackend()
    from .spconv_backend import SpconvBackend

    return SpconvBackend()


def _spconv_build() -> tuple[str, str]:
    """The installed GPU build of spconv ("spconv-cu118 2.3.8"), or "" and what is wrong."""
    installed = ((dist.metadata["Name"] or "", dist.version) for dist in metadata.distributions())
    builds = {name.lower().replace("_", "-"): version for name, version in installed}
    if CPU_WHEEL in builds:
        return "", (
            f"the wheel 'spconv' {builds[CPU_WHEEL]} is a CPU build that computes wrong results with several threads; "
            "run 'pip uninstall spconv' and 'pip install --force-reinstall spconv-cu118'"
        )
    gpu = sorted(build for build in builds if build.startswith("spconv-cu"))
    if not gpu:
        return (
            "",
            f"no spconv-cu wheel is installed ({platform.system()} {platform.machine()}); 'pip install spconv-cu118'",
        )
    return f"{gpu[0]} {builds[gpu[0]]}", ""
