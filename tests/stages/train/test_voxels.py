"""Voxelisation against a loop over a dict, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xd3d.errors import BackendError, DataError
from xd3d.stages.train.voxels import voxelise

coordinate = st.floats(0, 1.5, width=32)
clouds = st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=1, max_size=30)


def grid(points, sample=None, *, voxel_size=0.05, full_scale=4096, batch_size=1):
    sample = torch.zeros(len(points), dtype=torch.int64) if sample is None else sample
    return voxelise(points, sample, voxel_size=voxel_size, full_scale=full_scale, batch_size=batch_size)


@settings(max_examples=80, deadline=None)
@given(clouds=st.lists(clouds, min_size=1, max_size=3))
def test_voxels_are_those_of_a_dict_of_cells(clouds):
    rows = [(sample, *row) for sample, cloud in enumerate(clouds) for row in cloud]
    sample = torch.tensor([row[0] for row in rows])
    points = torch.tensor([row[1:4] for row in rows])
    indices, point_to_voxel = grid(points, sample, voxel_size=0.2, full_scale=8, batch_size=len(clouds))

    cells = {}
    for place, cell in enumerate(torch.floor(points / 0.2).long().tolist()):
        cells.setdefault((int(sample[place]), *cell), []).append(place)
    assert [tuple(index) for index in indices.tolist()] == sorted(cells)
    assert indices.dtype == torch.int32
    for voxel, index in enumerate(sorted(cells)):
        assert torch.nonzero(point_to_voxel == voxel).flatten().tolist() == cells[index]


def test_more_voxels_than_can_be_numbered_are_refused_before_samples_merge():
    points = torch.zeros(128, 3)
    with pytest.raises(BackendError, match=r"128 cubes of 524288.*train\.batch_size.*model\.full_scale"):
        grid(points, torch.arange(128), full_scale=524288, batch_size=128)
    assert len(grid(points[:32], torch.arange(32), full_scale=524288, batch_size=32)[0]) == 32


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_numbers_are_named(bad):
    points = torch.zeros(4, 3)
    points[2, 1] = bad
    with pytest.raises(DataError, match=r"1 of 4 points.*row 2"):
        grid(points)


def test_no_points():
    with pytest.raises(DataError, match="No points to voxelise"):
        grid(torch.zeros(0, 3))


def test_equal_points_give_equal_voxels_in_another_batch():
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    alone, _ = grid(points)
    batch, _ = grid(torch.cat([torch.zeros(1, 3), points]), torch.tensor([0] + [1] * 500), batch_size=2)
    assert torch.equal(batch[1:, 1:], alone[:, 1:])
