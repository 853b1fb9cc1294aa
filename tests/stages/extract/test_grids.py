"""Maps move between grids without losing mass, and seeds fill the image evenly."""

import numpy as np
import pytest
from xd3d.stages.extract.pixels import cell_bounds, overlap_matrix, resize_matrix, sample_matrix, seed_points


@pytest.mark.parametrize(
    ("cells", "extent", "source", "source_extent"), [(4, 3.5, 7, 7.0), (13, 12.5, 4, 3.125), (3, 3.0, 3, 3.0)]
)
def test_overlaps_share_the_whole_image(cells, extent, source, source_extent):
    shared = overlap_matrix(cells, extent, source, source_extent)
    assert shared.sum() == pytest.approx(1)
    np.testing.assert_allclose(shared.sum(1), np.diff(cell_bounds(cells, extent))[:, 0])
    np.testing.assert_allclose(shared.sum(0), np.diff(cell_bounds(source, source_extent))[:, 0])


@pytest.mark.parametrize(("cells", "extent", "source", "source_extent"), [(4, 3.5, 14, 14.0), (13, 12.5, 4, 3.125)])
def test_resizing_keeps_constants_and_slopes(cells, extent, source, source_extent):
    matrix = resize_matrix(cells, extent, source, source_extent)
    np.testing.assert_allclose(matrix.sum(1), 1)
    slope = matrix @ ((np.arange(source) + 0.5) / source_extent)
    wanted = (np.arange(cells) + 0.5) / extent
    inside = (
        (wanted > 1.0 / source_extent)
        & (wanted < 1 - 1.0 / source_extent)
        & (wanted > 1 / extent)
        & (wanted < 1 - 1 / extent)
    )
    np.testing.assert_allclose(slope[inside], wanted[inside], atol=0.02)


def test_sampling_is_bilinear_between_cell_centres():
    matrix = sample_matrix(np.array([0.0, 0.125, 0.25, 0.5, 1.0]), 4, 4.0)
    np.testing.assert_allclose(matrix @ [10.0, 20.0, 30.0, 40.0], [10, 10, 15, 25, 40])


@pytest.mark.parametrize(
    ("count", "height", "width"), [(100, 225, 400), (1, 30, 30), (7, 900, 1600), (3, 500, 20), (50, 20, 500)]
)
def test_seeds_are_exactly_as_many_and_about_square(count, height, width):
    points = seed_points(count, height, width)
    assert points.shape == (count, 2)
    assert len(np.unique(points, axis=0)) == count
    assert ((points > 0) & (points < 1)).all()
    np.testing.assert_allclose(points.mean(0), 0.5, atol=0.05)
    if count >= 50:
        rows = len(np.unique(points[:, 1]))
        assert rows == round((count * height / width) ** 0.5)
