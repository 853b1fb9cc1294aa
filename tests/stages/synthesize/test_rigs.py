from itertools import pairwise

import numpy as np
import pytest
from xd3d.errors import ConfigError
from xd3d.stages.datasets.nuscenes import CAMERAS
from xd3d.stages.synthesize.rigs import LIDAR, rig

DEGREES = {
    "CAM_FRONT": 0,
    "CAM_FRONT_RIGHT": -55,
    "CAM_BACK_RIGHT": -110,
    "CAM_BACK": 180,
    "CAM_BACK_LEFT": 110,
    "CAM_FRONT_LEFT": 55,
}


@pytest.fixture(params=["n008", "n015"])
def car(request):
    return rig(request.param, cameras=CAMERAS, image_size=(800, 450))


def test_cameras_look_where_their_names_say(car):
    for name, mount in car.cameras.items():
        right, down, forward = mount.ego_from_camera[:3, :3].T
        angle = np.deg2rad(DEGREES[name])
        assert forward @ [np.cos(angle), np.sin(angle), 0] > 0.999
        assert right @ [np.sin(angle), -np.cos(angle), 0] > 0.999
        assert down @ [0, 0, -1] > 0.999


def test_the_lidar_looks_forward_along_y(car):
    right, forward, up = car.ego_from_lidar[:3, :3].T
    assert right @ [0, -1, 0] > 0.999
    assert forward @ [1, 0, 0] > 0.999
    assert up @ [0, 0, 1] > 0.999
    assert car.ego_from_lidar[2, 3] == pytest.approx(car.lidar.mount_height)


def test_cameras_fire_within_the_spin_clockwise_from_its_start(car):
    delays = {name: mount.delay for name, mount in car.cameras.items()}
    assert all(0 <= delay <= car.lidar.spin_seconds for delay in delays.values())
    clockwise = [name for name in CAMERAS if name != "CAM_BACK"]
    turn = car.lidar.spin_seconds
    for first, second in pairwise(clockwise):
        passed = (delays[first] - delays[second]) % turn
        expected = (DEGREES[first] - DEGREES[second]) % 360 / 360 * turn
        assert passed == pytest.approx(expected, abs=1e-9)


def test_intrinsics_grow_with_the_image(car):
    half = rig("n008", cameras=("CAM_FRONT",), image_size=(400, 225)).cameras["CAM_FRONT"].model
    full = rig("n008", cameras=("CAM_FRONT",), image_size=(800, 450)).cameras["CAM_FRONT"].model
    np.testing.assert_allclose(full.intrinsics, half.intrinsics * [[2], [2], [1]])


def test_calibration_of_a_lidar_has_no_intrinsics(car):
    assert car.calibration(LIDAR)["camera_intrinsic"] == []
    assert np.shape(car.calibration("CAM_BACK")["camera_intrinsic"]) == (3, 3)


def test_the_two_cars_differ_and_each_is_always_the_same():
    first, again, other = (
        rig(name, cameras=("CAM_FRONT",), image_size=(800, 450)).calibration("CAM_FRONT")
        for name in ("n008", "n008", "n015")
    )
    assert first == again
    assert first != other


def test_an_unknown_car_is_refused():
    with pytest.raises(ConfigError, match="n008, n015"):
        rig("n009", cameras=(), image_size=(800, 450))
