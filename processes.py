"""Which of the processes that ``torchrun`` started this is, and what it may use; imports nothing heavy."""

import os

__all__ = ["is_first_process", "local_rank", "process_count", "processors"]


def process_count() -> int:
    """How many processes do one job together; 1 without ``torchrun``, which numbers each of them too."""
    return int(os.environ["WORLD_SIZE"]) if {"WORLD_SIZE", "RANK"} <= os.environ.keys() else 1


def is_first_process() -> bool:
    """Whether this process speaks for all: it alone prints, and writes to the run's folder."""
    return process_count() == 1 or int(os.environ.get("RANK", "0")) == 0


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processors() -> int:
    """How many processors this process may use; some systems tell only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
