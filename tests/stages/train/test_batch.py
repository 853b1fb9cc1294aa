from dataclasses import replace

import numpy as np
import pytest
import torch
from xd3d.errors import DataError
from xd3d.stages.train.batch import BatchPlan, PlacedFrame, collate
from xd3d.stages.train.device_transfer import to_device
from xd3d.stages.train.loader import evaluation_batch
from xd3d.stages.train.settings import ModelSettings

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = BatchPlan(model=ModelSettings(), taps=("up1", "up2", "rgb"))


def placed(domain, position, shift=0.0):
    frame = domain.load(position)
    points = frame.points - frame.points.min(0) + np.float32(shift)
    views = np.zeros(len(frame.image_rows), np.int64)
    return PlacedFrame(key=domain.key(position), frame=frame, points=points, cameras=domain.cameras(frame), views=views)


def test_samples_follow_each_other_with_their_views_and_projections(make_domain):
    domain = make_domain(frames=2, cameras=3)
    frames = [domain.load(position) for position in range(2)]
    batch = collate([placed(domain, 0), placed(domain, 1)], domain, PLAN)
    sizes = [len(frame.points) for frame in frames]
    assert torch.equal(batch.sample, torch.tensor([0] * sizes[0] + [1] * sizes[1]))
    assert batch.labels.tolist() == [*frames[0].labels, *frames[1].labels]
    assert torch.equal(batch.voxels.sample[batch.point_to_voxel], batch.sample.int())
    images = batch.images
    assert images.sample.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.camera.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(images.sample[images.projection_view], batch.sample[images.projection_point])
    second = images.projection_view >= 3
    assert images.projection_point[second].tolist() == [*(frames[1].projection_point + sizes[0])]
    assert {tap: tuple(values.shape) for tap, values in images.maps.items()} == {
        "up1": (6, 12, 3, 5),
        "up2": (6, 8, 6, 10),
        "rgb": (6, 3, 23, 40),
    }
    assert images.maps["rgb"].dtype == torch.uint8, "features must travel as they were stored"


def test_points_outside_the_cube_leave_with_their_labels_and_projections(make_domain):
    domain = make_domain(frames=1, cameras=2)
    whole = placed(domain, 0, shift=200.0)
    fewer = whole.inside(204.8)
    kept = np.flatnonzero((whole.points < 204.8).all(1))
    assert 0 < len(kept) < len(whole.points)
    assert collate([fewer], domain, PLAN).outside == len(whole.points) - len(kept)
    assert np.array_equal(fewer.frame.labels, whole.frame.labels[kept])
    assert np.array_equal(fewer.frame.source_rows, whole.frame.source_rows[kept])
    shown = {
        (int(kept[point]), int(view), *map(float, uv))
        for point, view, uv in zip(
            fewer.frame.projection_point, fewer.frame.projection_view, fewer.frame.projection_uv, strict=True
        )
    }
    expected = {
        (int(point), int(view), *map(float, uv))
        for point, view, uv in zip(
            whole.frame.projection_point, whole.frame.projection_view, whole.frame.projection_uv, strict=True
        )
        if point in kept
    }
    assert shown == expected


def test_a_frame_without_a_point_is_named(make_domain):
    domain = make_domain(frames=2)
    empty = placed(domain, 1, shift=1000.0).inside(204.8)
    with pytest.raises(DataError, match=r"frame-1"):
        collate([empty], domain, PLAN)
    assert collate([placed(domain, 0), empty], domain, PLAN).keys == ("frame-0",)


def test_evaluation_voxelises_every_point_alike_whether_or_not_the_cube_is_wide_enough(make_domain):
    domain = make_domain(frames=1)
    narrow, wide = (
        evaluation_batch(domain, BatchPlan(model=ModelSettings(full_scale=scale), taps=()), 0) for scale in (64, 4096)
    )
    assert len(narrow.labels) == len(domain.load(0).points)
    assert narrow.voxels.indices[:, 1:].max() > 64
    assert torch.equal(narrow.voxels.indices, wide.voxels.indices)
    assert torch.equal(narrow.point_to_voxel, wide.point_to_voxel)
    assert narrow.images is None


def test_moving_to_the_device_it_is_on_changes_nothing(make_domain):
    domain = make_domain(frames=1)
    batch = collate([placed(domain, 0)], domain, PLAN)
    assert to_device(batch, torch.device("cpu")) is batch


def test_kernel_maps_built_with_the_batch_give_the_same_network_output(make_domain, make_network):
    domain = make_domain(frames=1)
    network = make_network(domain).eval()
    assert network.plan.kernel_maps
    ahead = evaluation_batch(domain, network.plan, 0)
    on_use = evaluation_batch(domain, replace(network.plan, kernel_maps=False), 0)
    assert torch.equal(network(ahead).logits_3d, network(on_use).logits_3d)
