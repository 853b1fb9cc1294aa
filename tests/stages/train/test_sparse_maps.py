"""Kernel maps against loops over a dict of voxels."""

import itertools
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xd3d.stages.train.sparse import KernelMaps
from xd3d.stages.train.sparse.maps import strided_map, submanifold_map

SHAPE = (5, 4, 3)

voxel_sets = st.sets(
    st.tuples(st.integers(0, 1), *(st.integers(0, extent - 1) for extent in SHAPE)), min_size=1, max_size=40
).flatmap(lambda voxels: st.permutations(sorted(voxels)))


def pairs_by_cell(found):
    """Set of (cell, input row, output row)."""
    cells = itertools.chain.from_iterable(itertools.repeat(cell, count) for cell, count in enumerate(found.counts))
    return Counter(zip(cells, found.source.tolist(), found.target.tolist(), strict=True))


def assert_segments_group(segments, rows):
    """Row r's segment lists exactly the pairs that name r."""
    for row, (first, last) in enumerate(itertools.pairwise(segments.starts.tolist())):
        members = segments.order[first:last].tolist()
        assert sorted(members) == [pair for pair, named in enumerate(rows.tolist()) if named == row]
    assert segments.starts[-1] == len(rows)


@settings(max_examples=60, deadline=None)
@given(voxels=voxel_sets, kernel=st.sampled_from([3, 5]))
def test_submanifold_pairs_are_those_of_a_dict_of_neighbours(voxels, kernel):
    row = {voxel: place for place, voxel in enumerate(voxels)}
    reach = range(-(kernel // 2), kernel // 2 + 1)
    expected = Counter()
    for cell, (dx, dy, dz) in enumerate(itertools.product(reach, repeat=3)):
        for (sample, x, y, z), output in row.items():
            neighbour = row.get((sample, x + dx, y + dy, z + dz))
            if neighbour is not None:
                expected[cell, neighbour, output] += 1
    found = submanifold_map(torch.tensor(voxels, dtype=torch.int32), SHAPE, kernel)
    assert pairs_by_cell(found) == expected
    assert_segments_group(found.by_target, found.target)
    assert_segments_group(found.by_source, found.source)


@settings(max_examples=60, deadline=None)
@given(voxels=voxel_sets)
def test_strided_pairs_are_those_of_a_dict_of_parents(voxels):
    found = strided_map(torch.tensor(voxels, dtype=torch.int32), SHAPE)
    parents = sorted({(sample, x // 2, y // 2, z // 2) for sample, x, y, z in voxels})
    assert found.target_indices.tolist() == [list(parent) for parent in parents]
    assert found.target_shape == (3, 2, 2)
    expected = Counter(
        (x % 2 * 4 + y % 2 * 2 + z % 2, place, parents.index((sample, x // 2, y // 2, z // 2)))
        for place, (sample, x, y, z) in enumerate(voxels)
    )
    assert pairs_by_cell(found) == expected
    assert_segments_group(found.by_target, found.target)
    assert_segments_group(found.by_source, found.source)


def test_far_corners_of_the_largest_space_are_no_neighbours():
    """Keys of a 4096 cube need 39 bits: 32-bit keys would let these voxels collide."""
    corners = list(itertools.product((0, 7), (0, 256, 4095), (0, 4095), (0, 4095)))
    found = submanifold_map(torch.tensor(corners, dtype=torch.int32), (4096,) * 3, 3)
    assert found.source.tolist() == found.target.tolist() == list(range(len(corners)))


def test_an_entry_is_built_once():
    maps = KernelMaps(torch.zeros(1, 4, dtype=torch.int32), SHAPE, 1)
    first = maps.submanifold(0, 3, maps.indices, SHAPE)
    assert maps.submanifold(0, 3, maps.indices, SHAPE) is first
    assert maps.submanifold(0, 5, maps.indices, SHAPE) is not first
