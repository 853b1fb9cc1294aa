"""Several processes, started by ``torchrun``, that train one network as one process with the whole batch would.

Each has its part of every batch. A mean is each process's sum over the count of all, so that losses and gradients of
the processes add up to those of the whole batch. Every process must call these functions in the same order.
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
from ...processes import has_joined, launched_member, own_device, process_count

__all__ = [
    "distributed",
    "rand_per_sample",
    "from_first",
    "gathered",
    "number_of_processes",
    "own_part",
    "rank",
    "sum_gradients",
    "total",
]

log = logging.getLogger(__name__)

Value = TypeVar("Value")
#: How long a process waits for one that lives and does not answer; the first counts labels and saves meanwhile.
PATIENCE = timedelta(minutes=30)


@contextmanager
def distributed(name: str) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, for the time of the block; nothing to do for one alone.

    ``name`` is the device to train on, as ``own_device`` reads it. From here on the first process alone speaks, and
    ``own_device`` gives each its own GPU.

    Raises:
        BackendError: "cuda" was asked for, and there is none.
        RunError: another process cannot be reached, here or in the block; or there are fewer GPUs than processes.
    """
    member = launched_member()
    if member.count == 1:
        yield
        return
    device = own_device(name, setting="train.device", member=member)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if address := os.environ.get("MASTER_ADDR"):
        log.info("Process %d of %d joins the others at %s", member.rank, member.count, address)
    try:
        # Objects go over gloo in any case, whose processes notice at once that another is gone.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"RANK={member.rank} and WORLD_SIZE={member.count} are set, and this process did not meet the others"
            f" ({_said(error)}); start several with torchrun, or unset RANK and WORLD_SIZE to train with one"
        ) from error
    has_joined(member)
    if device.type == "cuda":
        _require_own_gpus(f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}")
    yield
    dist.destroy_process_group()  # not after an error: the others may be gone, and NCCL would wait for them


def _require_own_gpus(own: str) -> None:
    """Check that no two processes have the same GPU, by what names it among all; NCCL would only say that it failed."""
    every: list[Any] = [None] * number_of_processes()
    with _all_alive():
        dist.all_gather_object(every, own)
    if len(shared := [number for number, other in enumerate(every) if other == own]) > 1:
        raise RunError(
            f"Processes {', '.join(map(str, shared))} have the same GPU ({own}); start as many on a machine as it has"
            " GPUs (torchrun --nproc-per-node), and show each its own"
        )


def number_of_processes() -> int:
    """How many processes share each batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def own_part(values: Shaped[Tensor, "all *rest"]) -> Shaped[Tensor, "own *rest"]:
    """This process's share of values that all have alike, such as random numbers for every sample of the batch."""
    return values.chunk(number_of_processes())[rank()]


def rand_per_sample(samples: int, device: torch.device) -> Float[Tensor, "samples"]:
    """A random number, 0 to 1, for each of this process's ``samples``: those of all processes are drawn in each."""
    return own_part(torch.rand(samples * number_of_processes(), device=device))


def from_first(value: Value) -> Value:
    """The first process's ``value``, in every process."""
    if number_of_processes() == 1:
        return value
    held: list[Any] = [value]
    with _all_alive():
        dist.broadcast_object_list(held)
    return held[0]


def total(values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum over all processes, as a constant, the same bits in each."""
    if number_of_processes() == 1:
        return values.detach()
    summed = values.detach().clone(memory_format=torch.contiguous_format)
    with _all_alive():
        dist.all_reduce(summed)
    return summed


def gathered(values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "processes *shape"]:
    """The values of all processes, as constants, in the order of their ranks."""
    parts = [torch.empty_like(values) for _ in range(number_of_processes())]
    with _all_alive():
        dist.all_gather(parts, values.detach().contiguous())
    return torch.stack(parts)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes; None stays where no process has one."""
    if number_of_processes() == 1:
        return
    every = list(parameters)
    there = every[0].new_tensor([parameter.grad is not None for parameter in every])
    grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in every]
    summed = total(torch.cat([there, *(grad.flatten() for grad in grads)]))
    having, *parts = torch.split(summed, [len(every), *(each.numel() for each in every)])
    for parameter, count, part in zip(every, having.tolist(), parts, strict=True):
        parameter.grad = part.view_as(parameter) if count else None


@contextmanager
def _all_alive() -> Iterator[None]:
    """Say what it means when the others do not answer."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RunError(
            f"Process {rank()} of {process_count()} lost another process of this run, whose own message, if it left"
            f" one, says why it ended (heard here: {_said(error)}). Give the same command again to go on from the last"
            " checkpoint"
        ) from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
