"""The installed build of spconv: its name, the GPUs it was compiled for, and whether it works on this machine."""

import platform
import warnings
from functools import cache
from importlib import metadata

import torch

__all__ = ["Capability", "compiled_capabilities", "gpu_fault", "installed_build", "listed"]

Capability = tuple[int, int]  #: of a GPU, such as (9, 0)

CPU_WHEEL = "spconv"  # the plain name on PyPI is a CPU build that races between threads
GPU_WHEELS = "spconv-cu"  # and the CUDA version: 118, 120, 124, 126


def installed_build() -> tuple[str, str]:
    """Returns the installed GPU build of spconv ("spconv-cu118 2.3.8"), or "" and the fault; imports nothing.

    All installed builds are listed, because they overwrite each other's files.
    """
    installed = ((dist.metadata["Name"] or "", dist.version) for dist in metadata.distributions())
    builds = {name.lower().replace("_", "-"): version for name, version in installed}
    if CPU_WHEEL in builds:
        return "", (
            f"the wheel 'spconv' {builds[CPU_WHEEL]} is a CPU build that computes wrong results with several threads; "
            "run 'pip uninstall spconv' and 'pip install --force-reinstall spconv-cu118'"
        )
    found = [f"{name} {version}" for name, version in sorted(builds.items()) if name.startswith(GPU_WHEELS)]
    if not found:
        return (
            "",
            f"no spconv-cu wheel is installed ({platform.system()} {platform.machine()}); 'pip install spconv-cu118'",
        )
    return " and ".join(found), ""


@cache
def compiled_capabilities() -> tuple[Capability, ...]:
    """Returns the GPUs that the installed spconv was compiled for, in rising order; empty if unknown.

    The list is in its core (spconv 2.2 and later). Reading it takes 0.3 s and needs no GPU.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its build tools use locale.getdefaultlocale
            from spconv.core_cc.cumm.common import CompileInfo
        found = CompileInfo.get_compiled_cuda_arch()
        return tuple(sorted((int(major), int(minor)) for major, minor in found))
    except (ImportError, AttributeError, TypeError, ValueError, OSError, RuntimeError):
        return ()


def gpu_fault(build: str, device: torch.device) -> str:
    """Returns why ``build`` has no kernels for the GPU ``device``; "" if it has them, or if unknown.

    Compiled kernels run on GPUs of the same major capability and the same or a later minor one. The wheels carry PTX of
    their last capability beside, which newer GPUs may translate; users report both that it works and that it does not.
    """
    compiled = compiled_capabilities()
    if device.type != "cuda" or not torch.cuda.is_available() or not compiled:
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    if any(major == first and minor >= second for first, second in compiled):
        return ""
    return (
        f"{build} was compiled for GPUs of compute capability {listed(compiled)}, and this one"
        f" ({torch.cuda.get_device_name(device)}) has {major}.{minor}; build spconv for it from source"
    )


def listed(capabilities: tuple[Capability, ...]) -> str:
    """Returns capabilities in the usual notation: "8.6, 9.0"."""
    return ", ".join(f"{major}.{minor}" for major, minor in capabilities)
