"""Transfer of batches to the device: pinned in one block, copied asynchronously, each storage once.

A batch is a tree of dataclasses, mappings, tuples and tensors. Hundreds of small synchronous copies to a GPU would cost
more than the kernels of the step.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from math import ceil
from typing import Any, TypeVar

import torch
from torch import Tensor

from .sparse import KernelMaps

__all__ = ["map_tensors", "pin_memory", "prefetch", "to_device"]

ALIGNMENT = 64  #: bytes; every dtype can be viewed at a multiple of it

Tree = TypeVar("Tree")


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Returns ``tree`` with ``function`` applied to each tensor, once for a tensor that occurs several times."""
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
            found = {key: visit(part) for key, part in each.items()}
            return found if any(found[key] is not part for key, part in each.items()) else each
        if type(each) is tuple and any(not isinstance(part, (int, str)) for part in each):
            return tuple(visit(part) for part in each)
        return each

    result: Tree = visit(tree)
    return result


def pin_memory(tree: Tree, device: torch.device) -> Tree:
    """Returns ``tree`` with its CPU tensors in pinned memory, for asynchronous copies, if ``device`` is a GPU.

    Tensors that are not pinned yet are copied into one new block.
    """
    if device.type != "cuda":
        return tree
    offsets: dict[int, int] = {}
    size = 0

    def reserve(tensor: Tensor) -> Tensor:
        nonlocal size
        if tensor.device.type == "cpu" and not tensor.is_pinned():
            offsets[id(tensor)] = size
            size += ceil(tensor.nbytes / ALIGNMENT) * ALIGNMENT
        return tensor

    map_tensors(reserve, tree)
    block = torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in offsets:
            return tensor
        offset = offsets[id(tensor)]
        return block[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)

    return map_tensors(move, tree)


def to_device(tree: Tree, device: torch.device) -> Tree:
    """Returns ``tree`` with its CPU tensors on ``device``; tensors that share storage are copied once.

    Copies from pinned memory to a GPU are asynchronous: that memory must not change until they are done.
    """
    if device.type == "cpu":
        return tree
    copies: dict[int, Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        if tensor.device.type == device.type:
            return tensor
        if not tensor.numel():
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        if not tensor.is_contiguous():
            return tensor.to(device, non_blocking=True)
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in copies:
            copies[address] = torch.empty(0, dtype=torch.uint8).set_(storage).to(device, non_blocking=True)
        begin = tensor.storage_offset() * tensor.element_size()
        return copies[address][begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    return map_tensors(move, tree)


def prefetch(items: Iterable[tuple[Tree, float]], device: torch.device) -> Generator[tuple[Tree, float], None, None]:
    """Yields each of ``items`` on ``device`` with the seconds waited for it; a GPU receives the next while it computes.

    Copies run in a separate stream. When an item is requested, the copy of the previous one is done, and its host
    memory may be overwritten.
    """
    if device.type != "cuda":
        for item, waited in items:
            yield to_device(item, device), waited
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    following: tuple[Tree, torch.cuda.Event] | None = None
    waited = 0.0
    for item, seconds in items:
        ready, waited = following, waited + seconds
        with torch.cuda.stream(stream):
            following = to_device(item, device), stream.record_event()
        if ready is not None:
            torch.cuda.current_stream().wait_event(ready[1])
            yield _record_stream(ready[0]), waited
            waited = 0.0
        following[1].synchronize()
    if following is not None:
        yield _record_stream(following[0]), waited


def _record_stream(item: Tree) -> Tree:
    """Returns ``item``, whose memory the allocator reuses only after the current stream is done with it."""
    stream = torch.cuda.current_stream()

    def record(tensor: Tensor) -> Tensor:
        tensor.record_stream(stream)
        return tensor

    return map_tensors(record, item)
