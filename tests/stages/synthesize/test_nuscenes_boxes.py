import numpy as np
import pytest
from xd3d.stages.synthesize.nuscenes_rows import attribute, sights, visibility
from xd3d.stages.synthesize.world import ObjectBox


def box(category="vehicle.car", centre=(10.0, 0.0, 1.0), size=(2.0, 4.0, 2.0), yaw=0.0, velocity=(0.0, 0.0)):
    return ObjectBox(instance=1, category=category, centre=centre, size=size, yaw=yaw, velocity=velocity)


def sight(one, points, origin):
    return sights([one], points, origin)[0]


ORIGIN = np.array([0.0, 0.0, 1.0])


def test_points_inside_count_and_those_outside_do_not():
    points = np.array([[8.1, 0.9, 0.1], [11.9, -0.9, 1.9], [12.1, 0.0, 1.0], [10.0, 1.1, 1.0], [10.0, 0.0, 2.1]])
    assert sight(box(), points, ORIGIN).points == 2


def test_the_long_side_follows_the_heading():
    points = np.array([[10.0, 1.9, 1.0], [11.9, 0.0, 1.0]])
    assert sight(box(), points, ORIGIN).points == 1
    assert sight(box(yaw=np.pi / 2), points, ORIGIN).points == 1
    assert sight(box(yaw=np.pi / 2), points[:1], ORIGIN).points == 1


def test_visible_share_is_that_of_the_beams_towards_the_box_that_reach_it():
    hit = [[8.5, y, 1.0] for y in (-0.6, -0.2, 0.2)]
    stopped = [[5.0, 0.3, 1.0]]
    through = [[20.0, 0.5, 1.0]]
    elsewhere = [[5.0, 3.0, 1.0], [-8.5, 0.0, 1.0]]
    assert sight(box(), np.array(hit + stopped + through + elsewhere), ORIGIN).visible == pytest.approx(3 / 4)


def test_counts_agree_with_the_devkit_on_random_points():
    from nuscenes.utils.data_classes import Box
    from nuscenes.utils.geometry_utils import points_in_box
    from pyquaternion import Quaternion

    rng = np.random.default_rng(3)
    points = rng.uniform(-15, 15, (20_000, 3)).astype(np.float32)
    for _ in range(20):
        one = box(centre=tuple(rng.uniform(-12, 12, 3)), size=tuple(rng.uniform(0.5, 8, 3)), yaw=rng.uniform(-4, 4))
        reference = Box(one.centre, one.size, Quaternion(axis=[0, 0, 1], angle=one.yaw))
        assert sight(one, points, ORIGIN).points == points_in_box(reference, points.T).sum()


@pytest.mark.parametrize(("share", "token"), [(0.0, "1"), (0.39, "1"), (0.4, "2"), (0.6, "3"), (0.8, "4"), (1.0, "4")])
def test_visibility_levels(share, token):
    assert visibility(share) == token


@pytest.mark.parametrize(
    ("category", "speed", "expected"),
    [
        ("vehicle.car", 5.0, "vehicle.moving"),
        ("vehicle.bus.rigid", 0.0, "vehicle.parked"),
        ("vehicle.bicycle", 3.0, "cycle.with_rider"),
        ("vehicle.motorcycle", 0.0, "cycle.without_rider"),
        ("human.pedestrian.child", 1.0, "pedestrian.moving"),
        ("human.pedestrian.adult", 0.0, "pedestrian.standing"),
        ("movable_object.barrier", 0.0, None),
    ],
)
def test_attributes(category, speed, expected):
    assert attribute(box(category, velocity=(0.0, speed))) == expected
