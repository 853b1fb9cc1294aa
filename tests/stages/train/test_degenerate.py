"""Clouds that are empty, tiny, huge or unlabelled, from file to score: a defined result or a clear error."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from xd3d.errors import DataError
from xd3d.stages.datasets.frames import count_labels
from xd3d.stages.datasets.labels import IGNORE, class_weights
from xd3d.stages.evaluate.official import NO_CLASS
from xd3d.stages.evaluate.scores import score_frames
from xd3d.stages.predict.inference import predict_frames
from xd3d.stages.predict.whole_sweeps import sweep_prediction
from xd3d.stages.train.loader import training_batch
from xd3d.stages.train.losses import source_losses
from xd3d.stages.train.settings import AugmentSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")

ROAD, IGNORED = 24, 0  # raw ids


@pytest.fixture
def write_frame():
    """Replace the sweep and the raw labels of a domain's frame; points are x, y, z."""

    def write(domain, position, points, raw=ROAD):
        sweep = np.zeros((len(points), 5), np.float32)
        sweep[:, :3] = points
        sweep.tofile(domain.index.root / f"{position}.bin")
        labels = np.broadcast_to(np.asarray(raw, np.uint8), len(points))
        labels.tofile(domain.index.root / f"{position}.label")

    return write


@pytest.fixture
def walk(make_network, make_batch):
    """Take a domain through a training step and its evaluation; the batch, the losses and the score card."""

    def step(domain, *, frames, **values):
        network = make_network(domain, **values).train()
        batch = make_batch(domain, network, frames=frames)
        counts = count_labels(domain.index, range(len(domain)), domain.merge)
        weights = torch.tensor(class_weights(counts), dtype=torch.float32)
        losses = source_losses(network(batch), batch.labels, weights, TrainSettings())
        losses.total.backward()
        assert losses.total.isfinite()
        for name, parameter in network.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
        assert all(value.isfinite().all() for value in network.state_dict().values())
        return batch, losses, score_frames(predict_frames(network, domain, workers=0), network.classes)

    return step


PAPER = {"queries": "agents", "inject": "none", "context": "none", "decoupling": "loss"}
VARIANTS = [
    {"variant": "3d-only"},
    {},
    {"head": "distil", **PAPER},
    {"head": "refine", "keys": "features", **PAPER},
    {"queries": "agents", "head": "distil", "locate_queries": True},
    {"depth": "sparse"},
]


@pytest.mark.parametrize("values", VARIANTS)
@pytest.mark.parametrize("points", [1, 2])
def test_a_cloud_of_one_voxel_is_trained_on_and_scored(make_domain, write_frame, walk, points, values):
    domain = make_domain(frames=1)
    write_frame(domain, 0, np.tile([[0.0, 8, 0]], (points, 1)))
    batch, _, card = walk(domain, frames=1, **values)
    assert len(batch.voxels.indices) == 1
    assert card.points == points


@pytest.mark.parametrize("values", VARIANTS)
def test_an_empty_frame_gives_its_place_to_another_with_a_warning(make_domain, write_frame, walk, caplog, values):
    domain = make_domain(frames=3, cameras=2)
    write_frame(domain, 1, [[0.0, -8, 0]])  # behind the car
    with caplog.at_level(logging.WARNING, "xd3d"):
        batch, _, card = walk(domain, frames=3, **values)
    assert set(batch.keys) == {"frame-0", "frame-2"}
    assert set(batch.sample.tolist()) == {0, 1, 2}
    assert "frame-1" in caplog.text
    assert card.frames == 3


def test_an_empty_frame_is_replaced_alike_in_one_process_and_in_two(make_domain, write_frame, make_network):
    domain = make_domain(frames=4)
    write_frame(domain, 1, [[0.0, -8, 0]])
    plan, augment = make_network(domain).plan, AugmentSettings()
    options = {"seed": 3, "step": 0}
    whole = training_batch(domain, plan, augment, batch_size=4, **options)
    parts = [training_batch(domain, plan, augment, batch_size=1, share=(rank, 4), **options) for rank in range(4)]
    assert whole.keys == tuple(key for part in parts for key in part.keys)
    assert len(whole.labels) == sum(len(part.labels) for part in parts)


@pytest.mark.parametrize("values", VARIANTS[1:3])
def test_a_frame_that_no_camera_sees_is_scored_without_cameras_like_the_others(
    make_domain, write_frame, make_network, tiny_domains, values
):
    domain = make_domain(frames=2)
    write_frame(domain, 1, [[0.0, -8, 0]])
    network = make_network(domain, **values)
    blind = tiny_domains.open_domain(domain.index.root, frames=2, lidar_only=True)
    card = score_frames(predict_frames(network, blind, workers=0), network.classes)
    assert (card.frames, card.miou["2d"]) == (2, None)


def test_a_batch_of_empty_frames_names_them(make_domain, write_frame, make_network, make_batch):
    domain = make_domain(frames=2)
    for position in range(2):
        write_frame(domain, position, [[0.0, -8, 0]])
    with pytest.raises(DataError, match=r"frame-\d, frame-\d"):
        make_batch(domain, make_network(domain))


def test_a_domain_in_which_no_point_is_seen_has_nothing_to_score(make_domain, write_frame, make_network):
    domain = make_domain(frames=1)
    write_frame(domain, 0, [[0.0, -8, 0]])
    network = make_network(domain)
    card = score_frames(predict_frames(network, domain, workers=0), network.classes)
    assert card.points == 0
    with pytest.raises(DataError, match="no labelled point"):
        card.miou  # noqa: B018
    with pytest.raises(DataError, match="point of the selection has a class"):
        class_weights(count_labels(domain.index, [0], domain.merge))


@pytest.mark.parametrize("values", VARIANTS)
def test_an_image_in_which_no_point_falls_is_still_read(make_domain, write_frame, walk, values):
    domain = make_domain(frames=2, cameras=3)
    cloud = np.random.default_rng(0).uniform([-1, 6, -1], [1, 9, 1], (40, 3))
    for position in range(2):
        write_frame(domain, position, cloud, raw=[ROAD, 30] * 20)
    frame = domain.load(0)
    assert set(frame.projection_view.tolist()) < set(range(3)), "some camera must see nothing"
    batch, _, card = walk(domain, frames=2, **values)
    assert batch.images is None or len(batch.images.sample) == 6
    assert card.points == 80


@pytest.mark.parametrize("values", VARIANTS)
def test_six_cameras_all_around_are_trained_on_and_scored(make_domain, walk, values):
    domain = make_domain(frames=2, cameras=6)
    batch, _, card = walk(domain, frames=2, **values)
    assert batch.images is None or batch.images.camera.tolist() == 2 * [*range(6)]
    assert card.points == sum((domain.load(position).labels != IGNORE).sum() for position in range(2))


@pytest.mark.parametrize("values", VARIANTS)
def test_points_that_no_image_shows_are_trained_on_and_scored_where_all_are_kept(
    make_domain, write_frame, walk, values
):
    """A frame around the car and one that no camera sees a point of; a 3D head that needs images reads none there."""
    domain = dataclasses.replace(make_domain(frames=2, cameras=2), every_point=True)
    around = np.random.default_rng(0).uniform([-9, -9, -1], [9, 9, 1], (60, 3))
    write_frame(domain, 0, around)
    write_frame(domain, 1, around * [1, 0, 1] - [0, 9, 0])
    assert not len(domain.load(1).projection_point)
    batch, _, card = walk(domain, frames=2, **values)
    assert batch.images is None or 0 < batch.shown.sum() < 60
    assert card.points == 120


@pytest.mark.parametrize("values", VARIANTS)
def test_frames_without_a_label_cost_nothing_and_are_not_scored(make_domain, write_frame, walk, values):
    domain = make_domain(frames=3)
    for position in range(2):
        write_frame(domain, position, domain.load(position).points, raw=IGNORED)
    batch, losses, card = walk(domain, frames=3, **values)
    labelled = int((domain.load(2).labels != IGNORE).sum())
    assert int((batch.labels != IGNORE).sum()) == labelled == card.points
    assert losses.terms["ce_3d"] > 0


def test_a_class_that_never_occurs_has_a_weight_and_leaves_the_mean_unless_it_is_predicted(
    make_domain, write_frame, walk
):
    domain = make_domain(frames=2)
    for position in range(2):
        points = domain.load(position).points
        write_frame(domain, position, points, raw=np.where(points[:, 0] > 0, ROAD, 30))
    _, _, card = walk(domain, frames=2)
    for modality, absent in card.absent_classes.items():
        present = [values[modality] for name, values in card.iou.items() if name not in absent]
        assert {"driveable_surface", "vegetation"}.isdisjoint(absent)
        assert card.miou[modality] == pytest.approx(np.mean(present))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_coordinate_that_is_no_number_costs_its_point_alone(make_domain, write_frame, make_network, make_batch, bad):
    domain = make_domain(frames=1)
    points = domain.load(0).points.copy()
    network = make_network(domain)
    (before,) = predict_frames(network, domain)
    points[5, 1] = bad
    write_frame(domain, 0, points)
    assert len(make_batch(domain, network, frames=1).labels) == len(points) - 1
    (after,) = predict_frames(network, domain)
    assert len(after.labels) == len(before.labels) - 1
    classes = sweep_prediction(network.eval(), domain, 0, domain.load(0), after).classes("3d")
    assert len(classes) == len(points)
    assert classes[5] == NO_CLASS


@pytest.mark.parametrize("values", VARIANTS)
def test_a_cloud_wider_than_the_cube_is_cut_in_training_and_whole_in_evaluation(make_domain, write_frame, walk, values):
    domain = make_domain(frames=1)
    points = domain.load(0).points.copy()
    points[:50, 1] += 300
    write_frame(domain, 0, points)
    batch, _, card = walk(domain, frames=1, **values)
    assert len(batch.labels) == len(points) - 50
    assert card.points == len(points)


def test_a_stray_point_changes_nothing_about_the_others(make_domain, write_frame, make_network):
    domain = make_domain(frames=2, lidar_only=True)
    cloud = domain.load(0).points
    write_frame(domain, 0, cloud)
    write_frame(domain, 1, np.concatenate([cloud, [[0, 0.05 * 16 * 1000, 0]]]))
    alone, with_stray = predict_frames(make_network(domain, variant="3d-only"), domain, workers=0)
    difference = np.abs(with_stray.probabilities_3d[:-1] - alone.probabilities_3d)
    assert difference.max() < 1e-6


def test_coordinates_that_cannot_be_metres_are_refused(make_domain, write_frame, make_network):
    domain = make_domain(frames=1)
    write_frame(domain, 0, [[0.0, 8, 0], [0, 2e5, 0]])
    with pytest.raises(DataError, match=r"frame-0 is 2e\+05 m.*than 524288 voxels of 0\.05 m"):
        list(predict_frames(make_network(domain), domain))


def test_features_that_are_no_numbers_are_not_scored(make_domain, make_network, monkeypatch):
    domain = make_domain(frames=1)
    network = make_network(domain)
    read = domain.features.read

    def spoilt(rows):
        found = read(rows)
        found.maps["up1"][:, 0, 0, 0] = np.nan
        return found

    monkeypatch.setattr(domain.features, "read", spoilt)
    with pytest.raises(DataError, match="frame 0 is"):
        score_frames(predict_frames(network, domain, workers=0), network.classes)
