"""Several processes, started by ``torchrun``, that train one network as one process with the whole batch would.

Each has its part of every batch. A mean is each process's sum over the count of all, so that losses and gradients of
the processes add up to those of the whole batch. Every process must call these functions in the same order.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ...errors import RunError
from ...processes import local_rank, process_count

__all__ = [
    "distributed",
    "drawn_for_samples",
    "from_first",
    "gathered",
    "number_of_processes",
    "own_part",
    "rank",
    "sum_gradients",
    "total",
]

Value = TypeVar("Value")
#: How long a process waits for one that lives and does not answer; the first counts labels and saves meanwhile.
PATIENCE = timedelta(minutes=30)


@contextmanager
def distributed(device: torch.device) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, for the time of the block; nothing to do for one alone.

    Raises:
        RunError: another process cannot be reached, here or in the block.
    """
    if process_count() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        with _all_alive():
            # Objects go over gloo in any case, whose processes notice at once that another is gone.
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except ValueError as error:
        raise RunError(f"RANK and WORLD_SIZE are set, but not by torchrun ({error}); start with torchrun") from error
    yield
    dist.destroy_process_group()  # not after an error: the others may be gone, and NCCL would wait for them


def number_of_processes() -> int:
    """How many processes share each batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def own_part(values: Shaped[Tensor, "all *rest"]) -> Shaped[Tensor, "own *rest"]:
    """This process's share of values that all have alike, such as random numbers for every sample of the batch."""
    return values.chunk(number_of_processes())[rank()]


def drawn_for_samples(samples: int, device: torch.device) -> Float[Tensor, "samples"]:
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
        said = " ".join(str(error).split())[:300]
        raise RunError(
            f"Process {local_rank()} of {process_count()} lost another process of this run, whose own message, if it"
            f" left one, says why it ended (heard here: {said}). Give the same command again to go on from the last"
            " checkpoint"
        ) from error
