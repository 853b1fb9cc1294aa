"""Depth for the 2D branch: the map against a float64 reference, the encoder, and samples without depth."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d
from xd3d.stages.datasets.labels import LabelMerge
from xd3d.stages.datasets.readers import READERS
from xd3d.stages.synthesize.twins import synthesize_twin
from xd3d.stages.train.batch import BatchPlan
from xd3d.stages.train.depth import DepthEncoder, depth_map, scaled_depth
from xd3d.stages.train.domain import Domain
from xd3d.stages.train.loader import evaluation_batch
from xd3d.stages.train.settings import AugmentSettings, ModelSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def reference_maps(domain, batch, spec):
    """Depth of the nearest point in each cell: the frames' points, one after the other, in float64."""
    keys, poses, found = domain.index.frames.key.tolist(), domain.index.images.camera_from_lidar, []
    for key in batch.keys:
        frame = domain.load(keys.index(key))
        for view, image in enumerate(frame.image_rows):
            cells, own = np.zeros((spec.height, spec.width)), frame.projection_view == view
            for point, (u, v) in zip(frame.projection_point[own], frame.projection_uv[own], strict=True):
                depth = max(1.0, (poses[image] @ [*frame.points[point].astype(np.float64), 1])[2])
                row, column = int(v * spec.extent[0]), int(u * spec.extent[1])
                cells[row, column] = min(depth, cells[row, column] or depth)
            found.append(cells)
    return np.stack(found)


def test_the_map_has_the_depth_of_the_nearest_point_of_the_frame_as_it_was_swept(make_domain, make_network, make_batch):
    domain = make_domain(frames=2, cameras=6, points=400)
    domain.index.images.camera_from_lidar[:, :3, 3] = np.random.default_rng(0).normal(0, 0.5, (12, 3))
    network = make_network(domain, depth="sparse")
    batch = make_batch(domain, network, augment=AugmentSettings())  # augmentation moves the voxels alone
    for tap, spec in batch.images.specs.items():
        found, expected = depth_map(batch.images, spec)[:, 0], reference_maps(domain, batch, spec)
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=tap)
    seen = np.bincount(batch.images.projection_view, minlength=12)
    assert seen.min() == 0, "a camera that sees nothing"
    assert seen.sum() > 2 * (depth_map(batch.images, batch.images.specs["up1"]) > 0).sum(), "cells of several points"


def test_a_crop_leaves_no_depth_outside_its_window(make_domain, make_network, make_batch):
    domain = dataclasses.replace(make_domain(frames=2, points=2000), image_size=(90, 160))
    network = make_network(domain, depth="sparse")
    spec = domain.features.taps["rgb"]
    whole, cropped = (
        depth_map(make_batch(domain, network, augment=AugmentSettings(crop=crop)).images, spec)[:, 0]
        for crop in (None, (45, 60))
    )
    assert not cropped[:, : spec.height // 2 - 1].any()
    assert ((cropped > 0).any(1).sum(1) <= 16).all()
    assert (whole > 0).any(1).sum(1).min() > 30
    assert (cropped > 0).sum() > 50


@pytest.mark.parametrize(
    ("dataset", "frames"),
    [
        ("nuscenes", 18),
        pytest.param("semantickitti", 5, marks=pytest.mark.slow),
        pytest.param("a2d2", 3, marks=pytest.mark.slow),
        pytest.param("virtualkitti", 2, marks=pytest.mark.slow),
    ],
)
def test_depth_and_pixel_give_the_distance_from_the_camera_in_every_data_set(
    tiny_nuscenes_root, tmp_path, tiny_domains, dataset, frames
):
    root = tiny_nuscenes_root
    if dataset != "nuscenes":
        size = (124, 78) if dataset == "a2d2" else (124, 38)
        root = synthesize_twin(
            tmp_path / "root", dataset=dataset, frames=frames, image_size=size, azimuth_steps=90, workers=1
        )
    cameras = "image_2" if dataset == "semantickitti" else "all"
    index, features = READERS[dataset].build_index(root, cameras=cameras), tiny_domains.FakeFeatures()
    nothing = LabelMerge(name="none", classes=(), lut=np.zeros(0, np.int64), raw_ids=np.zeros(0, np.int64))
    domain = Domain(index=index, frames=np.arange(1), merge=nothing, features=features, labelled=False)
    plan = BatchPlan(model=ModelSettings(), taps=tuple(features.taps), depths=True)
    images, frame = evaluation_batch(domain, plan, 0).images, domain.load(0)
    for view, row in enumerate(frame.image_rows):
        own = frame.projection_view == view
        pixels = np.column_stack([frame.projection_uv[own] * index.images.size[row], np.ones(own.sum())])
        ray = np.linalg.norm(pixels @ np.linalg.inv(index.images.intrinsics[row]).T, axis=1)
        pose, points = index.images.camera_from_lidar[row], frame.points[frame.projection_point[own]]
        distance = np.linalg.norm(points + pose[:3, :3].T @ pose[:3, 3], axis=1)
        assert own.sum() > 20
        np.testing.assert_allclose(images.projection_depth[torch.from_numpy(own)] * ray, distance, rtol=0.02)


def test_depth_is_scaled_alike_everywhere_and_clipped():
    found = scaled_depth(torch.tensor([0.2, 1.0, 10.0, 100.0, 5000.0]))
    torch.testing.assert_close(found, torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0]))


def test_the_encoder_divides_by_the_known_cells_of_its_window():
    torch.manual_seed(0)
    encoder = DepthEncoder(channels=3)
    torch.nn.init.normal_(encoder.project.weight)
    depth = torch.where(torch.rand(2, 1, 9, 11) < 0.3, 1 + 30 * torch.rand(2, 1, 9, 11), 0.0)
    depth[0, 0, :5, :6] = 0
    values, known = scaled_depth(depth).double(), (depth > 0).double()
    for layer in encoder.layers:
        count = conv2d(known, torch.ones(1, 1, 3, 3, dtype=torch.float64), padding=1)
        sums = conv2d(values * known, layer.sum.weight.double(), padding=1)
        values = (9 * sums / count.clamp(min=1) + layer.bias.double()).relu()
        known = (count > 0).double()
    expected = known * conv2d(values, encoder.project.weight.double())
    found = encoder(depth)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    assert not found[0, :, :3, :4].any(), "nothing is added where no point is near"
    assert found.any()


@pytest.mark.parametrize("variant", ["image", "full"])
def test_depth_reaches_what_reads_the_image_and_never_the_lidar_only_head(
    make_domain, make_network, make_batch, awake, variant
):
    domain = make_domain(frames=2, cameras=2)
    network = awake(make_network(domain, variant=variant, depth="sparse")).eval()
    batch = make_batch(domain, network)
    farther = dataclasses.replace(batch.images, projection_depth=3 * batch.images.projection_depth)
    one, other = network(batch), network(dataclasses.replace(batch, images=farther))
    assert not torch.allclose(one.logits_2d, other.logits_2d)
    assert torch.equal(one.logits_3d, other.logits_3d) == (variant == "image")
    if variant == "full":
        assert torch.equal(one.logits_lidar, other.logits_lidar)


def test_an_untrained_encoder_changes_no_prediction(make_domain, make_network, make_batch):
    domain = make_domain(frames=2)
    network, plain = make_network(domain, depth="sparse").eval(), make_network(domain).eval()
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if ".depth." not in name})
    batch = make_batch(domain, network)
    for name in ("logits_2d", "logits_3d", "logits_lidar"):
        assert torch.equal(getattr(network(batch), name), getattr(plain(batch), name)), name


def test_whole_samples_are_trained_without_depth_with_the_chance_that_is_set(
    make_domain, make_network, make_batch, awake
):
    domain = make_domain(frames=2, cameras=2, points=60)
    network = awake(make_network(domain, depth="sparse", depth_dropout=0.3))
    images = make_batch(domain, network).images.prepared(normalise=True)
    sample = images.sample[images.projection_view]
    with torch.no_grad():
        with_depth = network.eval().image_branch(images)
        for encoder in network.image_branch.depth:
            encoder.project.weight.zero_()
        without = network.image_branch(images)
        awake(network).train()
        torch.manual_seed(0)
        kept = 0
        for _ in range(100):
            found = network.image_branch(images)
            for number in range(2):
                own = images.projection_point[sample == number].unique()
                whole = [torch.allclose(found[own], each[own], atol=1e-5) for each in (with_depth, without)]
                assert sum(whole) == 1
                kept += whole[0]
    assert 0.6 < kept / 200 < 0.8
