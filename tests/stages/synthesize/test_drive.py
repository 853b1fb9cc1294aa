import numpy as np
import pytest
from xd3d.stages.synthesize.style_sampling import city_style
from xd3d.stages.synthesize.world import Drive, World


def street(location, seed):
    style = city_style(location, rng=np.random.default_rng(seed))
    return World(style, seed, length=80.0)


@pytest.fixture(params=["boston", "singapore"])
def drive(request):
    world = street(request.param, 4)
    return world, Drive(world=world, rng=np.random.default_rng(0))


def test_the_car_drives_forward_at_cruising_speed(drive):
    world, car = drive
    for time in np.arange(1.0, 8.0, 0.37):
        before, pose, after = (car.world_from_ego(float(time + shift)) for shift in (-1e-3, 0.0, 1e-3))
        velocity = (after[:3, 3] - before[:3, 3]) / 2e-3
        assert np.linalg.norm(velocity) == pytest.approx(world.cruise_speed, rel=0.1)
        forward = pose[:3, 0]
        assert forward @ velocity / np.linalg.norm(velocity) > 0.9995
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)


def test_the_car_keeps_its_lane(drive):
    world, car = drive
    for time in np.arange(1.0, 8.0, 0.37):
        x, y = car.world_from_ego(float(time))[:2, 3]
        lane_x, lane_y, _ = world.lane_pose(world.cruise_speed * float(time))
        assert np.hypot(x - lane_x, y - lane_y) < 0.3
        assert world.ground.classes(np.array([x]), np.array([y])) == 24


@pytest.mark.parametrize("location", ["boston", "singapore"])
def test_the_car_hits_nothing(location):
    for seed in range(3):
        world = street(location, seed)
        car = Drive(world=world, rng=np.random.default_rng(seed))
        for time in np.arange(0.5, 8.0, 0.5):
            ego_from_world = np.linalg.inv(car.world_from_ego(float(time)))
            for thing in world.objects(float(time)):
                x, y, _, _ = ego_from_world @ [*thing.centre, 1.0]
                clear = min(thing.size[:2]) / 2
                assert not (-1.0 - clear < x < 3.5 + clear and abs(y) < 0.9 + clear), (thing, time)


def test_equal_random_streams_give_equal_drives():
    world = street("boston", 1)
    one, two, other = (Drive(world=world, rng=np.random.default_rng(seed)).world_from_ego(3.3) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other)
