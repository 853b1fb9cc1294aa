"""Batches on their way to the device: pinned in one block, copied beside the computation, each memory once.

A batch is a tree of dataclasses, mappings, tuples and tensors. On a GPU some hundred small copies, each of which waits
for the computation, would cost more than the step's own kernels.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor

from .sparse import KernelMaps

__all__ = ["map_tensors", "pinned", "sent_ahead", "to_device"]

ALIGNMENT = 64  #: bytes; every dtype can be viewed at a multiple of it

Tree = TypeVar("Tree")


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """``tree`` with each tensor replaced by ``function`` of it, which is called once for a tensor that occurs twice."""
    done: dict[int, Tensor] = {}

    def visit(each: Any) -> Any:
        if isinstance(each, Tensor):
            if id(each) not in done:
                done[id(each)] = function(each)
            return done[id(each)]
        if isinstance(each, KernelMaps):
            moved = each.mapped(visit)
            return each if moved.indices is each.indices else moved
        if is_dataclass(each) and not isinstance(each, type):
            parts = {part.name: getattr(each, part.name) for part in fields(each) if part.init}
            found = {name: visit(part) for name, part in parts.items()}
            changed = {name: part for name, part in found.items() if part is not parts[name]}
            return replace(each, **changed) if changed else each
        if isinstance(each, Mapping):
            return {key: visit(part) for key, part in each.items()}
        if type(each) is tuple and any(not isinstance(part, (int, str)) for part in each):
            return tuple(visit(part) for part in each)
        return each

    result: Tree = visit(tree)
    return result


def pinned(tree: Tree) -> Tree:
    """``tree`` with its CPU tensors in pinned memory, from which a copy to a GPU runs beside the computation.

    Those that are not there yet move into one new block.
    """
    places: dict[int, int] = {}
    size = 0

    def measure(tensor: Tensor) -> Tensor:
        nonlocal size
        if tensor.device.type == "cpu" and not tensor.is_pinned():
            places[id(tensor)] = size
            size += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        return tensor

    map_tensors(measure, tree)
    block = torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in places:
            return tensor
        first = places[id(tensor)]
        held = block[first : first + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
        return held.copy_(tensor)

    return map_tensors(move, tree)


def to_device(tree: Tree, device: torch.device) -> Tree:
    """``tree`` with its CPU tensors on ``device``; tensors that share memory are copied together, once.

    From pinned memory the copy is not waited for: on a GPU that memory must stay as it is until the copy is done.
    """
    if device.type == "cpu":
        return tree
    copies: dict[int, Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        if tensor.device.type == device.type:
            return tensor
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in copies:
            copies[address] = torch.empty(0, dtype=torch.uint8).set_(storage).to(device, non_blocking=True)
        begin = tensor.storage_offset() * tensor.element_size()
        length = prod(tensor.shape) * tensor.element_size()
        if not tensor.is_contiguous():
            return tensor.to(device, non_blocking=True)
        return copies[address][begin : begin + length].view(tensor.dtype).view(tensor.shape)

    return map_tensors(move, tree)


def sent_ahead(items: Iterable[tuple[Tree, float]], device: torch.device) -> Generator[tuple[Tree, float], None, None]:
    """Yield each of ``items`` on ``device`` with the seconds waited for; a GPU gets the next one while it computes.

    The copies run in a stream of their own. By the time that an item is asked for, the copy of the one before is done,
    and its memory may be overwritten.
    """
    if device.type != "cuda":
        for item, waited in items:
            yield to_device(item, device), waited
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Tree, torch.cuda.Event] | None = None
    waited = 0.0
    for item, seconds in items:
        ready, waited = ahead, waited + seconds
        with torch.cuda.stream(stream):
            ahead = to_device(item, device), stream.record_event()
        if ready is not None:
            yield _received(*ready), waited
            waited = 0.0
        ahead[1].synchronize()
    if ahead is not None:
        yield _received(*ahead), waited


def _received(item: Tree, copied: torch.cuda.Event) -> Tree:
    """``item`` for the present stream, which waits for its copy; its memory stays until that stream is done with it."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)

    def record(tensor: Tensor) -> Tensor:
        tensor.record_stream(stream)
        return tensor

    return map_tensors(record, item)
