"""The rank of this process in a distributed job, and the device, processors and threads it may use.

A process has rank 0 of 1 until it joins a group: the variables that launchers and batch systems leave in the
environment do not prove that other processes exist. Nothing heavy is imported.
"""

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import BackendError, RunError

if TYPE_CHECKING:
    import torch

__all__ = [
    "ProcessRank",
    "set_process_rank",
    "is_first_process",
    "launched_rank",
    "select_device",
    "world_size",
    "processors",
    "threads_each",
    "torchrun_processes",
]


@dataclass(frozen=True, kw_only=True)
class ProcessRank:
    """``rank`` among the ``world_size`` processes of a job, and ``local_rank`` among those of the same machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


_rank = ProcessRank()


def set_process_rank(rank: ProcessRank) -> None:
    """Records the rank with which this process joined a group; it outlives the group."""
    global _rank
    _rank = rank


def world_size() -> int:
    """Returns the number of processes in the job; 1 for a process that has not joined a group."""
    return _rank.world_size


def is_first_process() -> bool:
    """Returns whether this process has rank 0: only that one prints, and writes to the run's folder."""
    return _rank.rank == 0


def launched_rank() -> ProcessRank:
    """Returns the rank that ``torchrun``, or another launcher, set in the environment; use it only to join a group.

    Raises:
        RunError: the variables are not consistent numbers.
    """
    given = {name: os.environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if not (given["RANK"] and given["WORLD_SIZE"]):
        return ProcessRank()
    numbers = [int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else -1 for text in given.values() if text]
    rank, size, *local = numbers
    if min(numbers) < 0 or rank >= size:
        found = ", ".join(f"{name}={text}" for name, text in given.items() if text)
        raise RunError(
            f"The environment says {found}, which is not a valid rank; start the processes with torchrun, or unset"
            " RANK and WORLD_SIZE to train with one"
        )
    return ProcessRank(rank=rank, local_rank=local[0] if local else 0, world_size=size)


def torchrun_processes() -> int:
    """Returns the number of processes that ``torchrun`` started for this command; 1 without ``torchrun``."""
    return launched_rank().world_size if "TORCHELASTIC_RUN_ID" in os.environ else 1


def select_device(name: str, *, setting: str = "The device", process: ProcessRank | None = None) -> "torch.device":
    """Returns the device for "auto", "cpu" or "cuda"; "auto" is a GPU if one is available, else the CPU.

    In a distributed job each process uses the GPU of its local rank, or the only GPU that it can see. ``process`` is
    the rank to use, by default that of the group this process joined. ``setting`` names the option in error messages.

    Raises:
        BackendError: "cuda" was requested and is not available.
        RunError: there are more processes than GPUs.
    """
    import torch

    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if name == "cuda":
            raise BackendError(f"{setting} is cuda, and PyTorch sees no CUDA device; set it to auto or cpu")
        return torch.device("cpu")
    process, gpus = process or _rank, torch.cuda.device_count()
    if process.world_size == 1:
        return torch.device("cuda")
    if gpus == 1:
        return torch.device("cuda", 0)
    if process.local_rank >= gpus:
        raise RunError(
            f"Process {process.local_rank} of this machine has no GPU: PyTorch sees {gpus};"
            " start as many processes as there are GPUs (torchrun --nproc-per-node)"
        )
    return torch.device("cuda", process.local_rank)


def processors() -> int:
    """Returns the number of processors this process may use, or of all where the system does not report affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(workers: int) -> int:
    """Returns the threads for each of ``workers`` processes: ``OMP_NUM_THREADS``, or an equal share of PyTorch's.

    The first number counts if the variable holds a list (one per nesting level). Other text is ignored, as in OpenMP.
    """
    import torch

    asked = re.fullmatch(r"\s*0*([1-9]\d{0,5})\s*(,.*)?", os.environ.get("OMP_NUM_THREADS", ""), re.ASCII | re.DOTALL)
    return int(asked[1]) if asked else max(1, torch.get_num_threads() // workers)
