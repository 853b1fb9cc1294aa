"""Which of several processes that do one job this is, and what it may use; imports nothing heavy.

A process speaks for itself until it has joined others: what launchers and batch systems leave in the environment says
nothing of who else is there.
"""

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import BackendError, RunError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Member",
    "has_joined",
    "is_first_process",
    "launched_member",
    "own_device",
    "process_count",
    "processors",
    "threads_each",
    "torchrun_processes",
]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of ``count`` processes: ``rank`` is its number among all, ``local_rank`` that among those of its machine."""

    rank: int = 0
    local_rank: int = 0
    count: int = 1


_member = Member()


def has_joined(member: Member) -> None:
    """Keep that this process has joined a group as ``member``; it stays that when the group has done its work."""
    global _member
    _member = member


def process_count() -> int:
    """How many processes do one job together with this one; 1 for a process that has joined no others."""
    return _member.count


def is_first_process() -> bool:
    """Whether this process speaks for all that it has joined: it alone prints, and writes to the run's folder."""
    return _member.rank == 0


def launched_member() -> Member:
    """What ``torchrun``, or who sets the same variables, says this process is; only who then joins may believe it.

    Raises:
        RunError: the variables do not hold numbers that fit together.
    """
    given = {name: os.environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if not (given["RANK"] and given["WORLD_SIZE"]):
        return Member()
    numbers = [int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else -1 for text in given.values() if text]
    rank, count, *local = numbers
    if min(numbers) < 0 or rank >= count:
        found = ", ".join(f"{name}={text}" for name, text in given.items() if text)
        raise RunError(
            f"The environment says {found}, which names none of several processes; start them with torchrun, or unset"
            " RANK and WORLD_SIZE to train with one"
        )
    return Member(rank=rank, local_rank=local[0] if local else 0, count=count)


def torchrun_processes() -> int:
    """How many processes ``torchrun`` started of this command; 1 where it did not."""
    return launched_member().count if "TORCHELASTIC_RUN_ID" in os.environ else 1


def own_device(name: str, *, setting: str = "The device", member: Member | None = None) -> "torch.device":
    """The device that "auto", "cpu" or "cuda" means here: "auto" is a GPU where there is one, else the CPU.

    Of several processes (``member``, else what this one has joined) each has its own GPU among those of its machine;
    one that is shown a single GPU takes that. ``setting`` is what a message calls the choice.

    Raises:
        BackendError: "cuda" was asked for, and there is none.
        RunError: there are more processes than GPUs.
    """
    import torch

    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if name == "cuda":
            raise BackendError(f"{setting} is cuda, and PyTorch sees no CUDA device here; set it to auto or cpu")
        return torch.device("cpu")
    member, gpus = member or _member, torch.cuda.device_count()
    if member.count == 1:
        return torch.device("cuda")
    if gpus == 1:
        return torch.device("cuda", 0)
    if member.local_rank >= gpus:
        raise RunError(
            f"Process {member.local_rank} of this machine has no GPU: PyTorch sees {gpus};"
            " start as many processes as there are GPUs (torchrun --nproc-per-node)"
        )
    return torch.device("cuda", member.local_rank)


def processors() -> int:
    """How many processors this process may use; some systems tell only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(workers: int) -> int:
    """The threads that each of ``workers`` processes gets: what ``OMP_NUM_THREADS`` says, or its share of PyTorch's.

    Of a list, one number a level of nesting, the first counts; what is no number is passed over, as OpenMP does.
    """
    import torch

    asked = re.fullmatch(r"\s*0*([1-9]\d{0,5})\s*(,.*)?", os.environ.get("OMP_NUM_THREADS", ""), re.ASCII | re.DOTALL)
    return int(asked[1]) if asked else max(1, torch.get_num_threads() // workers)
