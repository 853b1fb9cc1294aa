"""Injection and located agents against dense float64 references, and how a network reads with and without a camera."""

import dataclasses

import numpy as np
import pytest
import torch
from xd3d.stages.train.injection import Injection, voxel_means
from xd3d.stages.train.located_agents import agents_at_points
from xd3d.stages.train.losses import source_losses
from xd3d.stages.train.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")

INJECTED = [
    {},
    {"inject": "agents"},
    {"inject": "both", "context": "none"},
    {"inject": "softmax", "context": "mlp"},
    {"inject": "xyz", "context": "none"},
    {"lidar_stages": 0},
    {"lidar_stages": 3},
    {"queries": "agents", "head": "distil", "locate_queries": True},
]


def bilinear(values, u, v, extent):
    """``values`` [C, h, w] at image fractions, the outermost centres repeated: one corner after the other."""
    _, height, width = values.shape
    x, y = np.clip(u * extent[1] - 0.5, 0, width - 1), np.clip(v * extent[0] - 0.5, 0, height - 1)
    found = np.zeros(len(values))
    for row in range(height):
        for column in range(width):
            weight = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
            found += weight * values[:, row, column]
    return found


def test_a_point_reads_the_agents_of_its_pixel_as_a_dense_reference_does(make_domain, make_network, make_batch):
    domain = make_domain(frames=2, cameras=3, points=60)
    images = make_batch(domain, make_network(domain)).images
    views, agents, points = len(images.sample), images.geometry.shape[1], 120
    tokens = np.random.default_rng(0).normal(size=(views, agents, 5))
    found = agents_at_points(torch.from_numpy(tokens).float(), images)
    height, width = images.assignment.shape[2:]
    dense = np.zeros((views, agents, height, width))
    for view in range(views):
        for row in range(height):
            for column in range(width):
                weights = images.membership[view, :, row, column].double().numpy()
                for place, weight in zip(images.assignment[view, :, row, column].tolist(), weights, strict=True):
                    dense[view, place, row, column] += weight / weights.sum()
    expected, seen = np.zeros((points, 5)), np.zeros(points)
    for point, view, (u, v) in zip(
        images.projection_point.tolist(), images.projection_view.tolist(), images.projection_uv.tolist(), strict=True
    ):
        shares = bilinear(dense[view], u, v, images.grid.extent)
        assert shares.sum() == pytest.approx(1)
        expected[point] += shares @ tokens[view]
        seen[point] += 1
    assert (seen > 1).any()
    np.testing.assert_allclose(found, expected / np.maximum(seen, 1)[:, None], atol=1e-5)


def test_voxels_get_the_mean_of_their_seen_points_as_a_loop_does():
    rng = np.random.default_rng(0)
    values, seen, voxel = rng.normal(size=(50, 3)), rng.random(50) < 0.6, rng.integers(0, 12, 50)
    seen[voxel == 3] = False
    means, shown = voxel_means(*map(torch.from_numpy, (values, seen, voxel)), 12)
    for number in range(12):
        own = values[(voxel == number) & seen]
        np.testing.assert_allclose(means[number], own.mean(0) if len(own) else np.zeros(3), atol=1e-12)
        assert shown[number].item() == (len(own) > 0)


def test_the_whole_injection_is_that_of_a_dense_float64_reference(make_domain, make_network, make_batch, awake):
    domain = make_domain(frames=2, cameras=3, points=80)
    network = awake(make_network(domain, context="none")).eval()
    batch = make_batch(domain, network)
    images = batch.images.prepared(normalise=True)
    stem = network.unet.encode(batch.voxels)[0]
    pixel = network.image_branch(images)
    seen = torch.bincount(images.projection_point, minlength=len(batch.labels)) > 0
    found = network.injection(stem, pixel, seen, batch.point_to_voxel).features - stem.features
    weight, bias = (value.detach().double().numpy() for value in network.injection.parameters())
    voxels = [[] for _ in range(len(stem.features))]
    for point, voxel in enumerate(batch.point_to_voxel.tolist()):
        if seen[point]:
            voxels[voxel].append(pixel[point].detach().double().numpy())
    expected = [weight @ np.mean(own, 0) + bias if own else np.zeros(len(bias)) for own in voxels]
    np.testing.assert_allclose(found.detach(), np.array(expected), atol=1e-4)


@pytest.mark.parametrize("values", INJECTED, ids=str)
def test_an_untrained_injection_changes_no_prediction(make_domain, make_network, make_batch, values):
    domain = make_domain(frames=2, points=150)
    network = make_network(domain, **values).eval()
    batch = make_batch(domain, network)
    before = network(batch).logits_3d
    for maps in batch.images.maps.values():
        maps.copy_(maps.flip(2))
    assert torch.equal(network(batch).logits_3d, before)


@pytest.mark.parametrize("values", INJECTED, ids=str)
def test_every_part_learns_once_the_zeros_have_moved(make_domain, make_network, make_batch, values, awake):
    domain = make_domain(frames=2)
    network = awake(make_network(domain, camera_dropout=0.0, drop_path=0.0, **values))
    output = network(batch := make_batch(domain, network))
    source_losses(output, batch.labels, torch.ones(6), TrainSettings()).total.backward()
    dead = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert dead == []


@pytest.mark.parametrize("values", INJECTED[:4], ids=str)
def test_the_camera_reaches_the_3d_reading_and_never_the_lidar_only_one(
    make_domain, make_network, make_batch, values, awake
):
    domain = make_domain(frames=2, cameras=2)
    network = awake(make_network(domain, **values)).eval()
    batch = make_batch(domain, network)
    with_camera, without = network(batch), network(dataclasses.replace(batch, images=None))
    assert torch.equal(with_camera.logits_lidar, without.logits_3d)
    assert without.logits_2d is None
    for maps in (*batch.images.maps.values(), *batch.images.agents.values()):
        maps.copy_(maps.flip(-1))
    other = network(batch)
    assert torch.equal(other.logits_lidar, with_camera.logits_lidar)
    assert not torch.allclose(other.logits_3d, with_camera.logits_3d)


def test_without_a_branch_of_its_own_the_lidar_only_reading_is_the_3d_head_without_injection(
    make_domain, make_network, make_batch, awake
):
    domain = make_domain(frames=2)
    network = awake(make_network(domain, lidar_stages=0)).eval()
    batch = make_batch(domain, network)
    without = network(dataclasses.replace(batch, images=None)).logits_3d
    torch.nn.init.zeros_(network.injection.project.weight)
    torch.nn.init.zeros_(network.injection.project.bias)
    assert torch.equal(network(batch).logits_3d, without)


def test_cameras_that_see_nothing_inject_nothing(make_domain, make_network, make_batch, awake):
    domain = make_domain(frames=2, cameras=2)
    network = awake(make_network(domain, lidar_stages=0)).eval()
    batch = make_batch(domain, network)
    none = torch.zeros(0, dtype=torch.int64)
    images = dataclasses.replace(
        batch.images,
        projection_point=none,
        projection_view=none,
        projection_uv=torch.zeros(0, 2),
        view_counts=0 * batch.labels,
    )
    blind = network(dataclasses.replace(batch, images=images, shown=torch.zeros(len(batch.labels), dtype=torch.bool)))
    assert torch.equal(blind.logits_3d, network(dataclasses.replace(batch, images=None)).logits_3d)
    assert not blind.image_weight.any()


def test_whole_samples_lose_their_camera_with_the_chance_that_is_set(make_domain, make_network, make_batch):
    domain = make_domain(frames=2, points=100)
    stem = make_network(domain).unet.encode(make_batch(domain, make_network(domain)).voxels)[0]
    injection = Injection(in_channels=4, out_channels=stem.features.shape[1], camera_dropout=0.3)
    torch.nn.init.ones_(injection.project.bias)
    batch = make_batch(domain, make_network(domain))
    values, seen = torch.zeros(len(batch.labels), 4), torch.ones(len(batch.labels), dtype=torch.bool)
    torch.manual_seed(0)
    kept = 0
    for _ in range(300):
        added = injection(stem, values, seen, batch.point_to_voxel).features - stem.features
        for sample in range(2):
            own = added[stem.sample == sample]
            assert own.std() < 1e-4  # all or nothing
            kept += bool(own.abs().max() > 0.5)
    assert 0.6 < kept / 600 < 0.8
    injection.eval()
    added = injection(stem, values, seen, batch.point_to_voxel).features - stem.features
    assert added.mean().item() == pytest.approx(1, abs=1e-4)
