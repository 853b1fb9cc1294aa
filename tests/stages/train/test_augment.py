import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xd3d.stages.datasets.frames import Frame
from xd3d.stages.train.augment import augment_points, augmentation_matrix, crop_points, sample_generator
from xd3d.stages.train.loader import Use, generator
from xd3d.stages.train.settings import AugmentSettings

CUBE = 204.8
STILL = AugmentSettings(rotation_noise=0.0, flip="none", rotate=False, translate=False)


def cloud(points=50, size=30.0):
    return np.random.default_rng(0).uniform(-size, size, (points, 3)).astype(np.float32)


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(0, 63))
def test_the_cloud_lies_in_the_cube(seed, step, place):
    moved = augment_points(cloud(), AugmentSettings(), CUBE, generator(seed, Use.SAMPLE, step, place))
    assert moved.dtype == np.float32
    assert (moved >= 0).all()
    assert (moved < CUBE).all()


@given(st.integers(0, 2**31))
def test_without_noise_distances_are_kept(seed):
    settings = AugmentSettings(rotation_noise=0.0)
    points = cloud()
    moved = augment_points(points, settings, CUBE, generator(seed, Use.SAMPLE, 0, 0))
    before = np.linalg.norm(points[:, None] - points[None], axis=-1)
    after = np.linalg.norm(moved[:, None] - moved[None], axis=-1)
    np.testing.assert_allclose(after, before, atol=1e-3)


def test_draws_depend_on_seed_step_and_place_alone():
    def draw(*key):
        return augment_points(cloud(), AugmentSettings(), CUBE, generator(key[0], Use.SAMPLE, *key[1:]))

    assert np.array_equal(draw(1, 2, 3), draw(1, 2, 3))
    assert not any(np.array_equal(draw(1, 2, 3), draw(*other)) for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)))


def drawn(settings, count=3000):
    rng = np.random.default_rng(0)
    return np.stack([augmentation_matrix(settings, rng) for _ in range(count)])


def test_noise_turn_and_flip_have_their_distributions():
    assert abs((np.linalg.det(drawn(AugmentSettings())) < 0).mean() - 0.5) < 0.05
    noise = drawn(AugmentSettings(flip="none", rotate=False)) - np.eye(3)
    assert np.abs(noise.mean(0)).max() < 0.01
    np.testing.assert_allclose(noise.std(0), 0.1, atol=0.01)
    turns = drawn(AugmentSettings(rotation_noise=0.0, flip="none"))
    angles = np.arctan2(turns[:, 0, 1], turns[:, 0, 0])
    assert np.histogram(angles, bins=6, range=(-np.pi, np.pi))[0].min() > 400
    assert (turns[:, 2] == [0, 0, 1]).all()


def test_the_place_in_the_cube_is_drawn_from_all_the_room_there_is():
    settings = STILL.model_copy(update={"translate": True})
    lowest = [
        augment_points(cloud(), settings, CUBE, generator(0, Use.SAMPLE, 0, place)).min(0) for place in range(300)
    ]
    room = CUBE - np.ptp(cloud(), axis=0)
    assert np.abs(np.mean(lowest, 0) / room - 0.5).max() < 0.06


@pytest.mark.parametrize(("axis", "column"), [("x", 0), ("y", 1)])
def test_a_flip_mirrors_its_axis_alone(axis, column):
    settings = STILL.model_copy(update={"flip": axis})
    seen = {tuple(np.diag(augmentation_matrix(settings, generator(0, Use.SAMPLE, 0, n)))) for n in range(20)}
    mirrored = [1.0, 1.0, 1.0]
    mirrored[column] = -1.0
    assert seen == {(1.0, 1.0, 1.0), tuple(mirrored)}


def test_a_cloud_that_fits_the_cube_is_placed_as_in_the_published_runs():
    for place in range(20):
        rng = sample_generator(3, 5, place)
        expected = cloud().astype(np.float64) @ augmentation_matrix(AugmentSettings(), rng)
        share = rng.random(3)
        expected -= expected.min(0)
        expected += np.clip(CUBE * (1 - 1e-6) - expected.max(0), 0, None) * share
        moved = augment_points(cloud(), AugmentSettings(), CUBE, generator(3, Use.SAMPLE, 5, place, 0))
        np.testing.assert_array_equal(moved, expected.astype(np.float32))


def test_a_cloud_larger_than_the_cube_has_its_densest_part_inside():
    points = cloud(points=400, size=300.0)
    points[:150, 0] = np.linspace(40, 60, 150)
    moved = augment_points(points, STILL.model_copy(update={"translate": True}), CUBE, sample_generator(0, 0, 0))
    assert ((moved[:150, 0] >= 0) & (moved[:150, 0] < CUBE)).all()
    assert (moved.max(0) > CUBE).all()


@pytest.mark.parametrize("echo", [[300, 5, 1], [-2000, 900, 40]])
def test_a_stray_echo_does_not_decide_which_part_of_the_street_is_trained_on(echo):
    street = np.vstack([cloud(points=500), np.float32([echo])])
    for place in range(60):
        moved = augment_points(street, AugmentSettings(), CUBE, sample_generator(0, 0, place))
        assert ((moved[:-1] >= 0) & (moved[:-1] < CUBE)).all()


def test_an_empty_cloud_stays_empty():
    empty = np.zeros((0, 3), np.float32)
    assert augment_points(empty, AugmentSettings(), CUBE, generator(0, Use.SAMPLE, 0, 0)).shape == (0, 3)


def seen_frame(uv, views=None, points=None):
    count = len(uv) if points is None else points
    views = np.zeros(len(uv), np.int64) if views is None else np.array(views)
    return Frame(
        points=np.arange(3.0 * count, dtype=np.float32).reshape(count, 3),
        labels=np.arange(count),
        source_rows=np.arange(count),
        image_rows=np.arange(views.max() + 1),
        projection_point=np.arange(len(uv)) % count,
        projection_view=views,
        projection_uv=np.array(uv, np.float32),
    )


def test_a_crop_keeps_what_lies_in_a_window_at_the_bottom_of_the_image():
    rng = np.random.default_rng(0)
    frame = seen_frame(rng.uniform(0.001, 0.999, (4000, 2)))
    lefts = []
    for place in range(200):
        kept = frame.choose(crop_points(frame, (302, 480), (375, 1242), generator(1, Use.SAMPLE, 2, place)))
        u, v = kept.projection_uv.T
        assert v.min() >= 1 - 302 / 375
        assert np.ptp(u) <= 480 / 1242
        assert len(u) == pytest.approx(4000 * 302 / 375 * 480 / 1242, rel=0.15)
        np.testing.assert_array_equal(kept.points, frame.points[kept.source_rows])
        np.testing.assert_array_equal(kept.projection_uv, frame.projection_uv[kept.source_rows])
        lefts.append(u.min())
    assert min(lefts) < 0.03
    assert max(lefts) > 0.58


def test_a_crop_as_large_as_the_image_keeps_every_point_and_one_of_a_camera_that_the_other_shows_too():
    frame = seen_frame([[0.1, 0.9], [0.9, 0.9]])
    assert crop_points(frame, (302, 480), (302, 480), generator(0, Use.SAMPLE, 0, 0)).all()
    twice = seen_frame([[0.1, 0.1], [0.5, 0.9]], views=[0, 1], points=1)
    assert crop_points(twice, (50, 100), (100, 100), generator(0, Use.SAMPLE, 0, 0)).all()
    unseen = seen_frame([[0.1, 0.1]], points=3)
    assert crop_points(unseen, (50, 100), (100, 100), generator(0, Use.SAMPLE, 0, 0)).tolist() == [False, True, True]
