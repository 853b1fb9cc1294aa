"""Which of the processes that ``torchrun`` started this is, and what it may use; imports nothing heavy."""

import os
from typing import TYPE_CHECKING

from .errors import RunError

if TYPE_CHECKING:
    import torch

__all__ = ["is_first_process", "local_rank", "own_device", "process_count", "processors", "threads_each"]


def process_count() -> int:
    """How many processes do one job together; 1 without ``torchrun``, which numbers each of them too."""
    return int(os.environ["WORLD_SIZE"]) if {"WORLD_SIZE", "RANK"} <= os.environ.keys() else 1


def is_first_process() -> bool:
    """Whether this process speaks for all: it alone prints, and writes to the run's folder."""
    return process_count() == 1 or int(os.environ.get("RANK", "0")) == 0


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def own_device(name: str) -> "torch.device":
    """The CPU where ``name`` is "cpu" or there is no GPU; else this process's GPU, among those of its machine.

    Raises:
        RunError: there are more processes than GPUs.
    """
    import torch

    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank() >= torch.cuda.device_count():
        raise RunError(
            f"Process {local_rank()} of this machine has no GPU: PyTorch sees {torch.cuda.device_count()};"
            " start as many processes as there are GPUs (torchrun --nproc-per-node)"
        )
    return torch.device("cuda", local_rank()) if process_count() > 1 else torch.device("cuda")


def processors() -> int:
    """How many processors this process may use; some systems tell only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(workers: int) -> int:
    """The threads that each of ``workers`` processes gets: what ``OMP_NUM_THREADS`` says, or its share of PyTorch's."""
    import torch

    return int(os.environ.get("OMP_NUM_THREADS") or max(1, torch.get_num_threads() // workers))
