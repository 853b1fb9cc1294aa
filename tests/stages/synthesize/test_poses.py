import numpy as np
import pytest
from pyquaternion import Quaternion
from xd3d.stages.synthesize.poses import EGO_FROM_CAMERA, EGO_FROM_LIDAR, quaternion, rigid, rotation


@pytest.mark.parametrize("yaw", [-3.1, -1.0, 0.0, 0.7, np.pi / 2, np.pi])
@pytest.mark.parametrize("pitch", [-0.4, 0.0, 1.2])
@pytest.mark.parametrize("roll", [-2.0, 0.0, np.pi])
def test_quaternion_agrees_with_an_independent_library(yaw, pitch, roll):
    expected = (
        Quaternion(axis=[0, 0, 1], angle=yaw)
        * Quaternion(axis=[0, 1, 0], angle=pitch)
        * Quaternion(axis=[1, 0, 0], angle=roll)
    )
    turn = rotation(yaw=yaw, pitch=pitch, roll=roll)
    np.testing.assert_allclose(turn, expected.rotation_matrix, atol=1e-12)
    found = quaternion(turn)
    assert found[0] >= 0
    np.testing.assert_allclose(Quaternion(found).rotation_matrix, turn, atol=1e-12)


def test_axes_of_the_sensors():
    forward, left, up = np.eye(3)
    np.testing.assert_array_equal(EGO_FROM_CAMERA, np.stack([-left, -up, forward], axis=1))
    np.testing.assert_array_equal(EGO_FROM_LIDAR, np.stack([-left, forward, up], axis=1))


def test_rigid_turns_and_then_moves():
    moved = rigid(rotation(yaw=np.pi / 2), (1.0, 2.0, 3.0)) @ [1.0, 0.0, 0.0, 1.0]
    np.testing.assert_allclose(moved, [1.0, 3.0, 3.0, 1.0], atol=1e-12)
