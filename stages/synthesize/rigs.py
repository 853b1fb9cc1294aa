"""The cars: their sensors, mountings, and camera triggers.

A camera is triggered when the LiDAR beam passes its viewing direction, so its timestamp is before that of the sweep
(the end of the spin) and the ego moves in between: the two-ego-pose chain of real nuScenes. ``rigs.yaml`` lists the
cars.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...errors import ConfigError
from .camera import CameraModel
from .lidar import LidarModel
from .poses import EGO_FROM_CAMERA, EGO_FROM_LIDAR, quaternion, rigid, rotation
from .sources import random_stream, read_table

__all__ = ["LIDAR", "LIDARS", "CameraMount", "Rig", "rig"]

LIDAR = "LIDAR_TOP"

_CARS = read_table("rigs")["cars"]
_MOUNTS = read_table("rigs")["mounts"]


def _lidar(*, beams: tuple[tuple[float, float, int], ...], cubic: float | None = None, **facts: Any) -> LidarModel:
    """Makes a model of ``rigs.yaml``."""
    degrees = [np.linspace(*span) for span in beams]
    if cubic:
        (low, high, _), curve = beams[0], np.linspace(-1, 1, beams[0][2])
        degrees = [(low + high) / 2 + (high - low) / 2 * ((1 - cubic) * curve + cubic * curve**3)]
    return LidarModel(elevations=tuple(np.radians(np.concatenate(degrees)).tolist()), **facts)


LIDARS: Mapping[str, LidarModel] = {name: _lidar(**facts) for name, facts in read_table("rigs")["lidars"].items()}
"""The sensors by name."""


@dataclass(frozen=True, kw_only=True)
class _Car:
    """A car's LiDAR, and the deviations of its mountings."""

    lidar: str
    lidar_ahead: float = 0.94  # metres in front of the rear axle
    lidar_pitch: float = 0.0  # degrees, nose down
    zoom: float = 1.0  # of focal lengths
    camera_raise: float = 0.0  # metres
    camera_pitch: float = 0.0  # degrees, nose down


@dataclass(frozen=True, eq=False)
class CameraMount:
    """A camera on a car."""

    model: CameraModel
    ego_from_camera: Float64[np.ndarray, "4 4"]
    delay: float  #: seconds from the exposure to the timestamp of the corresponding sweep


@dataclass(frozen=True, eq=False)
class Rig:
    """A car's LiDAR and its cameras by channel."""

    lidar: LidarModel
    ego_from_lidar: Float64[np.ndarray, "4 4"]
    cameras: dict[str, CameraMount]

    def calibration(self, channel: str) -> dict[str, Any]:
        """Returns translation, rotation and intrinsics of a sensor, as ``calibrated_sensor.json`` holds them."""
        mount = self.cameras.get(channel)
        pose = self.ego_from_lidar if mount is None else mount.ego_from_camera
        return {
            "translation": pose[:3, 3].tolist(),
            "rotation": quaternion(pose[:3, :3]),
            "camera_intrinsic": [] if mount is None else mount.model.intrinsics.tolist(),
        }


def rig(vehicle: str, *, cameras: tuple[str, ...], image_size: tuple[int, int]) -> Rig:
    """Builds the car ``vehicle`` with the named cameras; ``image_size`` is width, height in pixels.

    Raises:
        ConfigError: the car is unknown.
    """
    if vehicle not in _CARS:
        raise ConfigError(f"There is no car named '{vehicle}'; choose one of: {', '.join(_CARS)}")
    car = _Car(**_CARS[vehicle])
    lidar = LIDARS[car.lidar]
    misalignment, shift = _mounting_error(vehicle, LIDAR)
    tilt = rotation(yaw=0.0, pitch=np.deg2rad(car.lidar_pitch))
    ego_from_lidar = rigid(
        misalignment @ tilt @ EGO_FROM_LIDAR, np.array([car.lidar_ahead, 0.0, lidar.mount_height]) + shift * [1, 1, 0]
    )
    mounts = {channel: _mount(vehicle, car, channel, image_size) for channel in cameras}
    return Rig(lidar=lidar, ego_from_lidar=ego_from_lidar, cameras=mounts)


def _mount(vehicle: str, car: _Car, channel: str, image_size: tuple[int, int]) -> CameraMount:
    lidar = LIDARS[car.lidar]
    degrees, place, focal = _MOUNTS[channel]
    width, height = image_size
    misalignment, shift = _mounting_error(vehicle, channel)
    rng = _constants(vehicle, channel, "lens")
    focal *= car.zoom * width * (1 + rng.uniform(-0.01, 0.01))
    centre = (width * (0.5 + rng.uniform(-0.02, 0.02)), height * (0.53 + rng.uniform(-0.02, 0.02)))
    intrinsics = np.array([[focal, 0.0, centre[0]], [0.0, focal, centre[1]], [0.0, 0.0, 1.0]])
    yaw = np.deg2rad(degrees)
    fraction = lidar.fraction_at(float(-yaw))
    return CameraMount(
        model=CameraModel(width=width, height=height, intrinsics=intrinsics),
        ego_from_camera=rigid(
            misalignment @ rotation(yaw=yaw, pitch=np.deg2rad(car.camera_pitch)) @ EGO_FROM_CAMERA,
            np.add(place, [0, 0, car.camera_raise]) + shift,
        ),
        delay=lidar.spin_seconds * (1 - fraction),
    )


def _mounting_error(vehicle: str, channel: str) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, " 3"]]:
    """A mounting error: a rotation of a fraction of a degree and a shift of about a centimetre."""
    rng = _constants(vehicle, channel, "mounting")
    yaw, pitch, roll = rng.normal(0.0, 0.006, 3)
    return rotation(yaw=yaw, pitch=pitch, roll=roll), rng.normal(0.0, 0.015, 3)


def _constants(*path: str) -> np.random.Generator:
    """Returns the generator of a car's constants: the same in every root, whatever its seed."""
    return random_stream(*path, size=8)
