"""Voxelisation against a loop over a dict, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xd3d.errors import BackendError, DataError
from xd3d.stages.train.voxels import inside_cube, voxelise

coordinate = st.floats(0, 1.5, width=32)
clouds = st.lists(st.tuples(coordinate, coordinate, coordinate, st.floats(-5, 5, width=32)), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(clouds=st.lists(clouds, min_size=1, max_size=3))
def test_voxels_are_those_of_a_dict_of_cells(clouds):
    rows = [(sample, *row) for sample, cloud in enumerate(clouds) for row in cloud]
    sample = torch.tensor([row[0] for row in rows])
    points = torch.tensor([row[1:4] for row in rows])
    features = torch.tensor([[row[4], 1.0] for row in rows], dtype=torch.float64)
    voxels = voxelise(points, features, sample, voxel_size=0.2, full_scale=8)

    cells = {}
    for place, cell in enumerate(torch.floor(points / 0.2).long().tolist()):
        cells.setdefault((int(sample[place]), *cell), []).append(place)
    assert [tuple(index) for index in voxels.indices.tolist()] == sorted(cells)
    assert voxels.batch_size == len(clouds)
    assert voxels.spatial_shape == (8, 8, 8)
    for voxel, index in enumerate(sorted(cells)):
        members = cells[index]
        assert torch.nonzero(voxels.point_to_voxel == voxel).flatten().tolist() == members
        mean = sum(rows[place][4] for place in members) / len(members)
        assert voxels.features[voxel].tolist() == pytest.approx([mean, 1.0], abs=1e-12)


def test_values_return_to_the_points_by_a_gather():
    points = torch.tensor([[0.01, 0.0, 0.0], [0.3, 0.0, 0.0], [0.04, 0.0, 0.0]])
    voxels = voxelise(points, torch.tensor([[1.0], [5.0], [3.0]]), torch.zeros(3, dtype=torch.int64))
    assert voxels.features[voxels.point_to_voxel].flatten().tolist() == [2.0, 5.0, 2.0]
    assert voxels.indices.dtype == torch.int32


def test_the_far_edge_of_the_cube_is_outside_and_its_last_voxel_is_inside():
    edge = 0.05 * 4096
    points = torch.tensor([[edge - 0.01, 0.0, 0.0], [0.0, edge, 0.0], [0.0, 0.0, -0.001]])
    assert inside_cube(points).tolist() == [True, False, False]
    inside = voxelise(points[:1], torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))
    assert inside.indices.tolist() == [[0, 4095, 0, 0]]
    with pytest.raises(BackendError, match=r"2 of 3 points.*of 4096 voxels"):
        voxelise(points, torch.ones(3, 1), torch.zeros(3, dtype=torch.int64))


def test_more_voxels_than_can_be_numbered_are_refused_before_samples_merge():
    points, features = torch.zeros(128, 3), torch.ones(128, 1)
    with pytest.raises(BackendError, match=r"128 cubes of 524288.*train\.batch_size.*model\.full_scale"):
        voxelise(points, features, torch.arange(128), full_scale=524288)
    assert len(voxelise(points[:32], features[:32], torch.arange(32), full_scale=524288).indices) == 32


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_numbers_are_named(bad):
    points = torch.zeros(4, 3)
    features, sample = torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)
    points[2, 1] = bad
    with pytest.raises(DataError, match=r"1 of 4 points.*row 2"):
        voxelise(points, features, sample)
    with pytest.raises(DataError, match=r"have features that are NaN"):
        voxelise(torch.zeros(4, 3), features * bad, sample)


def test_no_points():
    with pytest.raises(DataError, match="No points to voxelise"):
        voxelise(torch.zeros(0, 3), torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))


def test_a_sample_without_points():
    with pytest.raises(DataError, match=r"1 of 3 samples.*sample 1"):
        voxelise(torch.zeros(2, 3), torch.ones(2, 1), torch.tensor([0, 2]))


def test_samples_are_numbered_from_zero():
    with pytest.raises(DataError, match="found -1"):
        voxelise(torch.zeros(2, 3), torch.ones(2, 1), torch.tensor([0, -1]))


def test_equal_points_give_equal_bits_in_another_batch():
    generator = torch.Generator().manual_seed(0)
    points, features = torch.rand(500, 3, generator=generator), torch.randn(500, 2, generator=generator)
    alone = voxelise(points, features, torch.zeros(500, dtype=torch.int64))
    other = torch.cat([torch.zeros(1, 3), points]), torch.cat([torch.ones(1, 2), features])
    batch = voxelise(*other, torch.tensor([0] + [1] * 500))
    assert torch.equal(batch.features[1:], alone.features)
    assert torch.equal(batch.indices[1:, 1:], alone.indices[:, 1:])
