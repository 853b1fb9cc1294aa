import torch
from torch.nn.functional import grid_sample, interpolate
from xd3d.cache.schema import TapSpec
from xd3d.stages.train.image_branch import ImageBranch, resize_matrix, sample_points
from xd3d.stages.train.images import ImageBatch
from xd3d.stages.train.ragged import Ragged

SPECS = {
    "up1": TapSpec(name="up1", channels=4, height=3, width=4, extent=(2.5, 4.0)),
    "rgb": TapSpec(name="rgb", channels=3, height=10, width=16, extent=(10.0, 16.0)),
}


def image_batch(points, views, uv, count=None, **maps):
    sample = torch.zeros(int(max(views)) + 1, dtype=torch.int64)
    return ImageBatch(
        specs=SPECS,
        maps=maps,
        agents={},
        geometry=torch.zeros(int(max(views)) + 1, 1, 5),
        sample=sample,
        camera=torch.arange(int(max(views)) + 1),
        projection_point=torch.tensor(points),
        projection_view=torch.tensor(views),
        projection_uv=uv,
        view_counts=torch.bincount(torch.tensor(points), minlength=count or 0),
        layout=Ragged.of(sample, 1),
    )


def test_points_read_the_maps_as_grid_sample_does_and_average_over_their_views():
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 6, 7)
    extent = (5.4, 6.8)
    uv = torch.rand(40, 2)
    uv[0], uv[1] = torch.tensor([1e-6, 1e-6]), torch.tensor([1 - 1e-6, 1 - 1e-6])
    points, views = [*range(30), *range(10)], [0] * 30 + [1] * 10
    found = sample_points(maps, image_batch(points, views, uv, count=31), extent)
    place = 2 * uv * torch.tensor([extent[1] / 7, extent[0] / 6]) - 1
    read = [
        grid_sample(
            maps[view : view + 1],
            place[None, None, row : row + 1],
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )[0, :, 0, 0]
        for row, view in enumerate(views)
    ]
    for point in range(30):
        rows = [row for row in range(40) if points[row] == point]
        expected = torch.stack([read[row] for row in rows]).mean(0)
        torch.testing.assert_close(found[point], expected, rtol=1e-4, atol=1e-5)
    assert not found[30].any(), "a point that no view shows must read zeros"


def test_resizing_agrees_with_interpolate_where_nothing_is_padded():
    values = torch.randn(1, 2, 5, 7)
    rows, columns = resize_matrix(11, 11.0, 5, 5.0), resize_matrix(20, 20.0, 7, 7.0)
    expected = interpolate(values, (11, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(rows @ (values @ columns.T), expected, rtol=1e-4, atol=1e-5)


def test_resizing_reads_the_same_image_point_whatever_the_padding():
    """A ramp over the image stays the same ramp on another grid with other padding."""
    coarse = (torch.arange(8) + 0.5) / 6.5  # image fraction at the centres of a row that spans 6.5 cells
    fine = resize_matrix(30, 26.0, 8, 6.5) @ coarse
    expected = (torch.arange(30) + 0.5) / 26.0
    inside = (expected > coarse[0]) & (expected < coarse[-1])
    torch.testing.assert_close(fine[inside], expected[inside], rtol=1e-4, atol=1e-5)


def test_the_branch_gives_a_feature_a_point_and_learns_from_every_tap():
    torch.manual_seed(0)
    branch = ImageBranch(tap_channels={"up1": 4, "rgb": 3}, channels=8)
    images = image_batch(
        [0, 1, 2], [0, 0, 0], torch.rand(3, 2), up1=torch.randn(1, 4, 3, 4), rgb=torch.randn(1, 3, 10, 16)
    )
    features = branch(images)
    assert features.shape == (3, 8)
    features.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in branch.parameters())
