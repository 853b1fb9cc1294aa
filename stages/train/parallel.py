"""Distributed training with ``torchrun``, equivalent to one process that trains on the whole batch.

Each process has its part of every batch. A mean is the process's sum over the count of all processes, so that losses
and gradients add up to those of the whole batch. All processes must call these functions in the same order.
"""

import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ...errors import RunError
from ...processes import launched_rank, select_device, set_process_rank, world_size

__all__ = [
    "distributed",
    "rand_per_sample",
    "broadcast",
    "gathered",
    "number_of_processes",
    "rank",
    "sum_gradients",
    "total",
]

log = logging.getLogger(__name__)

Value = TypeVar("Value")
#: Timeout of collectives; the first process counts labels and saves checkpoints while the others wait.
TIMEOUT = timedelta(minutes=30)


@contextmanager
def distributed(name: str) -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, for the duration of the block; a single process does nothing.

    ``name`` is the device to train on, for ``select_device``, which then returns a different GPU in each process. After
    joining, only the first process logs.

    Raises:
        BackendError: "cuda" was requested and is not available.
        RunError: another process cannot be reached, here or in the block, or there are fewer GPUs than processes.
    """
    process = launched_rank()
    if process.world_size == 1:
        yield
        return
    device = select_device(name, setting="train.device", process=process)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if address := os.environ.get("MASTER_ADDR"):
        log.info("Process %d of %d joins the others at %s", process.rank, process.world_size, address)
    try:
        # Objects are always sent over gloo, which notices at once when another process has ended.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"RANK={process.rank} and WORLD_SIZE={process.world_size} are set, and this process could not join the"
            f" others ({_one_line(error)}); start several with torchrun, or unset RANK and WORLD_SIZE to train with one"
        ) from error
    set_process_rank(process)
    if device.type == "cuda":
        _require_distinct_gpus(f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}")
    yield
    dist.destroy_process_group()  # not after an error: NCCL would wait for processes that may have ended


def _require_distinct_gpus(gpu: str) -> None:
    """Checks that no two processes have the same GPU, by its unique name; NCCL would fail without naming the cause."""
    every: list[Any] = [None] * number_of_processes()
    with _all_alive():
        dist.all_gather_object(every, gpu)
    if len(shared := [number for number, other in enumerate(every) if other == gpu]) > 1:
        raise RunError(
            f"Processes {', '.join(map(str, shared))} have the same GPU ({gpu}); start as many on a machine as it has"
            " GPUs (torchrun --nproc-per-node), and show each its own"
        )


def number_of_processes() -> int:
    """Returns the number of processes that share each batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Returns the rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def rand_per_sample(samples: int, device: torch.device) -> Float[Tensor, "samples"]:
    """Returns a random number, 0 to 1, for each local sample; every process draws those of all processes."""
    return torch.rand(samples * number_of_processes(), device=device).chunk(number_of_processes())[rank()]


def broadcast(value: Value) -> Value:
    """Broadcasts the first process's ``value`` to every process."""
    if number_of_processes() == 1:
        return value
    held: list[Any] = [value]
    with _all_alive():
        dist.broadcast_object_list(held)
    return held[0]


def total(values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Returns the sum over all processes, detached and bitwise equal in each."""
    if number_of_processes() == 1:
        return values.detach()
    summed = values.detach().clone(memory_format=torch.contiguous_format)
    with _all_alive():
        dist.all_reduce(summed)
    return summed


def gathered(values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "processes *shape"]:
    """Returns the values of all processes, detached, in the order of their ranks."""
    parts = [torch.empty_like(values) for _ in range(number_of_processes())]
    with _all_alive():
        dist.all_gather(parts, values.detach().contiguous())
    return torch.stack(parts)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of all processes; a gradient stays None if no process has one."""
    if number_of_processes() == 1:
        return
    every = list(parameters)
    present = every[0].new_tensor([parameter.grad is not None for parameter in every])
    grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in every]
    summed = total(torch.cat([present, *(grad.flatten() for grad in grads)]))
    counts, *parts = torch.split(summed, [len(every), *(each.numel() for each in every)])
    for parameter, count, part in zip(every, counts.tolist(), parts, strict=True):
        parameter.grad = part.view_as(parameter) if count else None


@contextmanager
def _all_alive() -> Iterator[None]:
    """Turns the errors of a collective into one that explains that another process has ended."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RunError(
            f"Process {rank()} of {world_size()} lost another process of this run; the output of that process may say"
            f" why (error here: {_one_line(error)}). Run the same command again to resume from the last checkpoint"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
