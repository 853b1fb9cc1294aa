import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xd3d.stages.train.device_transfer import map_tensors, pin_memory, prefetch, to_device

SPEC = importlib.util.spec_from_file_location("pretend_cuda", Path(__file__).parents[2] / "pretend_cuda.py")
pretended = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pretended)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool)


@dataclass(frozen=True)
class Tree:
    tensor: torch.Tensor
    parts: dict
    counts: tuple = (1, 2)
    name: str = "tree"


def test_a_tensor_that_occurs_twice_is_handed_in_once_and_the_rest_stays():
    shared = torch.arange(3)
    tree, seen = (Tree(shared, {"again": shared, "other": torch.zeros(1)}), None), []
    found, none = map_tensors(lambda tensor: seen.append(tensor) or tensor + 1, tree)
    assert len(seen) == 2
    assert found.tensor is found.parts["again"]
    assert found.tensor.tolist() == [1, 2, 3]
    assert (found.counts, found.name, none) == ((1, 2), "tree", None)
    assert map_tensors(lambda tensor: tensor, tree[0]) is tree[0]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3), st.booleans()),
        min_size=1,
        max_size=6,
    )
)
def test_values_of_every_dtype_and_shape_arrive_in_one_copy(kinds):
    torch.manual_seed(0)
    tensors = [(20 * torch.randn(shape)).to(dtype) for dtype, shape, _ in kinds]
    tensors = [
        values.mT if turned and values.ndim > 1 else values for values, (*_, turned) in zip(tensors, kinds, strict=True)
    ]
    with pretended.pretend_cuda() as traffic:
        arrived = to_device(pin_memory(dict(enumerate(tensors)), pretended.CUDA), pretended.CUDA)
        assert all(values.device == pretended.CUDA for values in arrived.values())
        for number, values in enumerate(tensors):
            assert torch.equal(arrived[number].held, values)
            assert arrived[number].dtype == values.dtype
    assert (traffic.pinned.total(), traffic.pageable.total()) == (any(values.numel() for values in tensors), 0)


def test_views_of_one_memory_are_copied_together():
    whole = torch.arange(12.0).view(3, 4)
    with pretended.pretend_cuda() as traffic:
        arrived = to_device({"whole": whole, "row": whole[1], "rows": whole[1:]}, pretended.CUDA)
        assert torch.equal(arrived["row"].held, whole[1])
        assert torch.equal(arrived["rows"].held, whole[1:])
    assert traffic.pageable.total() == 1


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_memory_may_be_overwritten_when_the_next_item_is_asked_for(count, monkeypatch):
    memory, copied = np.zeros(4, np.int64), []

    def items():
        for number in range(count):
            assert len(copied) == number, "the copy of the item before must be done"
            memory[:] = number
            yield {"values": torch.from_numpy(memory)}, 0.5

    with pretended.pretend_cuda():
        monkeypatch.setattr(pretended._Event, "synchronize", lambda self: copied.append(self))
        arrived = [(item["values"].tolist(), waited) for item, waited in prefetch(items(), pretended.CUDA)]
    assert [values for values, _ in arrived] == [[number] * 4 for number in range(count)]
    assert sum(waited for _, waited in arrived) == 0.5 * count


def test_on_the_cpu_items_pass_through_as_they_are():
    item = {"values": torch.zeros(2)}
    assert next(each for each, _ in prefetch([(item, 1.0)], torch.device("cpu"))) is item
