"""Mixing and the augmentation of the sensor: what becomes of points, labels and pixels, for any frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from xd3d.stages.datasets.frames import Frame
from xd3d.stages.datasets.labels import IGNORE
from xd3d.stages.train.augment import augment_points, sample_generator
from xd3d.stages.train.loader import step_positions, training_batch
from xd3d.stages.train.mixing import mix_frames
from xd3d.stages.train.sensor_augment import elevation, ground_height, mounted, vary_sensor
from xd3d.stages.train.settings import AugmentSettings

MIXES = ("dense", "polar", "laser")
SENSOR = {"beam_drop": 1.0, "early_returns": 1.0, "jitter": 0.05, "scale": 0.3, "mount_height": 0.8}

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(0, 200)


def make_frame(seed, points, *, views=2, part=0, dtype=np.float32):
    """A street whose points, labels, pseudo labels and pixels all tell the row they belong to."""
    rng = np.random.default_rng([seed, part])
    cloud = rng.uniform((-20, 2, -1.8), (20, 40, 4), (points, 3))
    cloud[: points // 2, 2] = -1.8 + 0.02 * rng.standard_normal(points // 2)
    rows = np.arange(points) + 1000 * part
    shown = np.flatnonzero(rng.random(points) < 0.8)
    return Frame(
        points=cloud.astype(dtype),
        labels=rows,
        source_rows=rows,
        image_rows=np.arange(views) + 10 * part,
        projection_point=np.concatenate([shown, shown[::2]]),
        projection_view=np.concatenate([np.zeros(len(shown), int), np.full(len(shown[::2]), views - 1)]),
        projection_uv=((np.concatenate([rows[shown], rows[shown[::2]]]) + 1) / 4096)[:, None].repeat(2, 1).astype("f4"),
        pseudo=np.stack([rows + 1, rows + 2], 1),
    )


def check(frame, *, images):
    """What belongs to a point is still its own."""
    known = frame.labels != IGNORE
    assert np.isfinite(frame.points).all()
    assert len(frame.points) == len(frame.labels) == len(frame.source_rows) == len(frame.pseudo)
    np.testing.assert_array_equal(frame.labels[known], frame.source_rows[known])
    np.testing.assert_array_equal(frame.pseudo[known], frame.source_rows[known, None] + [[1, 2]])
    assert (frame.pseudo[~known] == IGNORE).all()
    rows = frame.source_rows[frame.projection_point]
    np.testing.assert_allclose(frame.projection_uv, ((rows + 1) / 4096)[:, None].repeat(2, 1))
    np.testing.assert_array_equal(frame.image_rows, images)
    np.testing.assert_array_equal(frame.image_rows[frame.projection_view] >= 10, rows >= 1000)


@limits(max_examples=60, deadline=None)
@given(seeds, counts, counts, st.sampled_from(MIXES))
@example(0, 1, 2, "dense")  # a quantile between two points lies on neither
def test_a_mixed_point_keeps_its_label_and_the_pixel_of_its_own_frame(seed, one, other, mix):
    frames = make_frame(seed, one), make_frame(seed, other, part=1)
    mixed = mix_frames(*frames, mix, np.random.default_rng(seed))
    if not one or not other:
        assert mixed is frames[0 if one else 1]
        return
    check(mixed, images=[0, 1, 10, 11])
    whole = len(frames[0].projection_point) + len(frames[1].projection_point)
    if mix == "dense":
        assert len(mixed.points) == one + other
        assert len(mixed.projection_point) == whole
    assert len(np.unique(mixed.source_rows)) == len(mixed.source_rows)
    unmoved = mixed.source_rows < (1000 if mix == "dense" else 2000)
    both = np.concatenate([frame.points for frame in frames])
    rows = np.where(mixed.source_rows < 1000, mixed.source_rows, mixed.source_rows - 1000 + one)
    np.testing.assert_array_equal(mixed.points[unmoved], both[rows[unmoved]])


@limits(max_examples=30, deadline=None)
@given(seeds)
def test_dense_mixing_scales_the_second_frame_and_sets_it_on_the_ground_of_the_first(seed):
    first, second = make_frame(seed, 150), make_frame(seed, 150, part=1)
    second = replace(second, points=second.points + np.float32([0, 0, 0.7]))
    mixed = mix_frames(first, second, "dense", np.random.default_rng(seed)).points[150:]
    scales = np.linalg.norm(mixed[:, :2], axis=1) / np.linalg.norm(second.points[:, :2], axis=1)
    assert 0.65 <= scales.min() <= scales.max() <= 1.5
    assert np.ptp(scales) < 1e-4
    assert ground_height(mixed) == pytest.approx(ground_height(first.points), abs=0.21)
    assert np.ptp(mixed[:, 2]) == pytest.approx(scales.mean() * np.ptp(second.points[:, 2]), rel=1e-4)


@limits(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(["polar", "laser"]))
def test_two_copies_of_a_frame_share_the_field_of_view(seed, mix):
    """Of equal frames each point is taken once: what one frame gives, the other does not."""
    first, second = make_frame(seed, 120), replace(make_frame(seed, 120), image_rows=np.array([10, 11]))
    mixed = mix_frames(first, second, mix, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.sort(mixed.labels), np.arange(120))
    shares = np.bincount(mixed.projection_view >= 2, minlength=2)
    assert shares.min() > 0


@limits(max_examples=80, deadline=None)
@given(seeds, counts, st.sets(st.sampled_from(sorted(SENSOR)), min_size=1), st.sampled_from(["f4", "f8"]))
def test_a_varied_sensor_keeps_labels_and_pixels_with_their_points(seed, points, names, dtype):
    frame = make_frame(seed, points, dtype=dtype)
    varied = vary_sensor(frame, AugmentSettings(**{name: SENSOR[name] for name in names}), np.random.default_rng(seed))
    check(varied, images=[0, 1])
    assert varied.points.dtype == frame.points.dtype
    assert (np.diff(varied.source_rows) > 0).all()
    assert len(varied.points) == points or "beam_drop" in names
    if points:
        assert len(varied.points) > 0
    assert (varied.labels != IGNORE).all() or "early_returns" in names
    shown = np.isin(frame.source_rows[frame.projection_point], varied.source_rows)
    assert len(varied.projection_point) == shown.sum()


@limits(max_examples=40, deadline=None)
@given(seeds)
def test_each_variation_does_what_it_says(seed):
    frame = make_frame(seed, 200)
    distance = np.linalg.norm(frame.points, axis=1)

    def vary(**values):
        return vary_sensor(frame, AugmentSettings(**values), np.random.default_rng(seed))

    early = vary(early_returns=1.0)
    hit = early.labels == IGNORE
    np.testing.assert_array_equal(early.points[~hit], frame.points[~hit])
    after = np.linalg.norm(early.points, axis=1)
    assert (after[hit] < distance[hit]).all()
    assert (after >= 0.499).all()
    np.testing.assert_allclose(early.points * (distance / after)[:, None], frame.points, rtol=1e-4, atol=1e-4)
    bands = ((elevation(frame.points) - elevation(frame.points).min()) / np.ptp(elevation(frame.points)) * 64).astype(
        int
    )
    kept = np.isin(frame.source_rows, vary(beam_drop=1.0).source_rows)
    assert all(len(set(kept[bands == band])) == 1 for band in np.unique(bands[bands < 64]))
    factor = np.linalg.norm(vary(scale=0.2).points, axis=1) / distance
    assert 1 / 1.2 - 1e-4 <= factor.min() <= factor.max() <= 1.2 + 1e-4
    assert np.ptp(factor) < 1e-4
    assert np.abs(vary(jitter=0.05).points - frame.points).max() < 0.05 * 6


@pytest.mark.parametrize("raised", [-1.0, -0.4, 0.5])
def test_another_mounting_moves_the_rings_on_the_ground_along_their_beams(raised):
    frame = make_frame(4, 200)
    moved = mounted(frame, raised)
    directions = [each.points / np.linalg.norm(each.points, axis=1, keepdims=True) for each in (frame, moved)]
    np.testing.assert_allclose(*directions, atol=1e-5)
    ground = frame.points[:, 2] < -1.7
    assert moved.points[ground, 2].mean() == pytest.approx(-1.8 - raised, abs=0.1)
    assert moved.points[:, 2].min() > -1.8 - raised - 0.15
    np.testing.assert_array_equal(moved.points[frame.points[:, 2] > 0], frame.points[frame.points[:, 2] > 0])
    assert mounted(frame, -5.0).points[:, 2].min() == pytest.approx(-0.3, abs=0.05), "it stays above the ground"


@pytest.mark.parametrize("change", [*({"mix": mix, "mix_share": 1.0} for mix in MIXES), SENSOR], ids=str)
def test_a_batch_of_varied_frames_is_whole_and_the_same_when_made_again(make_domain, make_network, change):
    domain = make_domain(frames=4, cameras=2, points=200)
    plan, augment = make_network(domain).plan, AugmentSettings(**change)
    one, again = (training_batch(domain, plan, augment, batch_size=2, seed=3, step=5) for _ in range(2))
    assert torch.equal(one.voxels.indices, again.voxels.indices)
    assert torch.equal(one.labels, again.labels)
    assert len(one.images.sample) == (8 if "mix" in change else 4)
    assert one.images.sample.tolist() == sorted(one.images.sample.tolist())
    assert torch.equal(one.sample[one.images.projection_point], one.images.sample[one.images.projection_view])
    assert [" + " in key for key in one.keys] == ["mix" in change] * 2
    output = make_network(domain)(one)
    assert len(output.logits_2d) == len(output.logits_3d) == len(one.labels)


def test_what_is_off_changes_no_sample_and_the_placement_of_a_sample_does_not_depend_on_what_is_on(
    make_domain, make_network
):
    """A pose is drawn from the same numbers: with no noise on it, a mixed sample begins with the unmixed one."""
    domain = make_domain(frames=4, points=120)
    plan = make_network(domain).plan

    def batch(**values):
        return training_batch(domain, plan, AugmentSettings(**values), batch_size=2, seed=3, step=5)

    for values in ({"mix": "dense", "mix_share": 0.0}, {"mix_share": 1.0}, {"beam_drop": 0.0}):
        assert torch.equal(batch(**values).voxels.indices, batch().voxels.indices)
        assert torch.equal(batch(**values).images.projection_uv, batch().images.projection_uv)
    positions = step_positions(4, 2, 3, 5)
    for place, position in enumerate(positions):  # the numbers of published runs: the generator's first ones
        points = augment_points(
            domain.load(position).points, AugmentSettings(), plan.cube, sample_generator(3, 5, place)
        )
        voxels = batch().voxels.indices[batch().voxels.indices[:, 0] == place, 1:]
        cells = np.unique(np.floor(points / np.float32(plan.model.voxel_size)).astype(int), axis=0)
        np.testing.assert_array_equal(voxels, cells)
    still = {"translate": False, "rotation_noise": 0.0}
    whole, dense = batch(**still), batch(**still, mix="dense", mix_share=1.0)
    ours = dense.labels[dense.sample == 0][:120]
    assert torch.equal(ours, whole.labels[whole.sample == 0])


@pytest.mark.parametrize("values", [{"mix": "cut"}, {"mix_share": 1.1}, {"beam_drop": -0.1}, {"jitter": -1}], ids=str)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        AugmentSettings(**values)
