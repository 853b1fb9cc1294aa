"""The cars: their sensors, mountings, and camera triggers.

A camera is triggered when the LiDAR beam passes its viewing direction, so its timestamp is before that of the sweep
(the end of the spin) and the ego moves in between: the two-ego-pose chain of real nuScenes. The Boston car (n008) and
the Singapore car (n015) differ in LiDAR model, lenses and mountings; a third (n108) has a LiDAR of 64 beams on a higher
rack, a fourth (n109) one of 22 beams on a lower rack. Siena's car (n110) is low and has wide lenses; the truck (n111)
has its LiDAR on the bumper, nose down, and cameras at the top of its cab.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...errors import ConfigError
from .camera import CameraModel
from .lidar import LidarModel
from .poses import EGO_FROM_CAMERA, EGO_FROM_LIDAR, quaternion, rigid, rotation

__all__ = ["LIDAR", "LIDARS", "CameraMount", "Rig", "rig"]

LIDAR = "LIDAR_TOP"

_MOUNTS: dict[str, tuple[float, tuple[float, float, float], float]] = {
    "CAM_FRONT": (0.0, (1.70, 0.0, 1.50), 0.79),
    "CAM_FRONT_RIGHT": (-55.0, (1.55, -0.49, 1.50), 0.79),
    "CAM_FRONT_LEFT": (55.0, (1.53, 0.49, 1.50), 0.79),
    "CAM_BACK": (180.0, (0.03, 0.0, 1.58), 0.51),
    "CAM_BACK_LEFT": (110.0, (1.03, 0.48, 1.58), 0.79),
    "CAM_BACK_RIGHT": (-110.0, (1.02, -0.48, 1.57), 0.79),
}
"""Direction (degrees left of forward), position in the ego frame (metres), focal length as a share of image width."""


def _lidar(
    *degrees: Float64[np.ndarray, "_"],
    steps: int,
    reach: float,
    noise: float,
    dropout: float,
    gain: float,
    height: float,
) -> LidarModel:
    """Makes a model with beams at these elevations; ``reach``, ``noise`` and ``height`` are in metres."""
    return LidarModel(
        elevations=tuple(np.radians(np.concatenate(degrees)).tolist()),
        azimuth_steps=steps,
        max_range=reach,
        range_noise=noise,
        dropout=dropout,
        gain=gain,
        mount_height=height,
    )


_SPREAD = np.linspace(-1, 1, 32)

LIDARS: Mapping[str, LidarModel] = {
    # Boston: 32 evenly spaced beams, as in nuScenes.
    "boston": _lidar(
        np.linspace(-30.67, 10.67, 32), steps=1080, reach=90.0, noise=0.015, dropout=0.03, gain=1.4, height=1.84
    ),
    # Singapore: beams dense at the horizon, fewer steps, more noise, mounted higher.
    "singapore": _lidar(
        -7.5 + 17.5 * (0.55 * _SPREAD + 0.45 * _SPREAD**3),
        steps=900,
        reach=75.0,
        noise=0.028,
        dropout=0.06,
        gain=1.0,
        height=2.05,
    ),
    # 64 beams that look down more than up, as a Velodyne HDL-64E's, on a rack.
    "dense": _lidar(
        np.linspace(-24.33, -8.83, 32),
        np.linspace(-8.33, 2.0, 32),
        steps=1440,
        reach=100.0,
        noise=0.02,
        dropout=0.05,
        gain=1.1,
        height=2.45,
    ),
    # 22 beams on a lower rack, with a shorter range and more drop-out.
    "sparse": _lidar(
        np.linspace(-24.0, 9.0, 22), steps=960, reach=65.0, noise=0.025, dropout=0.08, gain=0.85, height=1.6
    ),
    # 40 beams, a degree or more apart but for a dense band below the horizon.
    "uneven": _lidar(
        np.linspace(-25.0, -7.0, 10),
        np.linspace(-6.0, 2.0, 25),
        np.linspace(4.0, 15.0, 5),
        steps=1250,
        reach=120.0,
        noise=0.02,
        dropout=0.04,
        gain=0.7,
        height=1.68,
    ),
    # 64 even beams near the ground, many steps, and a short range.
    "near": _lidar(
        np.linspace(-22.5, 22.5, 64), steps=1536, reach=45.0, noise=0.012, dropout=0.04, gain=1.8, height=1.1
    ),
}
"""The sensors by name."""


@dataclass(frozen=True, kw_only=True)
class _Car:
    """A car's LiDAR, and the deviations of its mountings from ``_MOUNTS`` and from an upright LiDAR above the seats."""

    lidar: LidarModel
    lidar_ahead: float = 0.94  # metres in front of the rear axle
    lidar_pitch: float = 0.0  # degrees, nose down
    zoom: float = 1.0  # of focal lengths
    camera_raise: float = 0.0  # metres
    camera_pitch: float = 0.0  # degrees, nose down


_CARS = {
    "n008": _Car(lidar=LIDARS["boston"]),
    "n015": _Car(lidar=LIDARS["singapore"]),
    "n108": _Car(lidar=LIDARS["dense"]),
    "n109": _Car(lidar=LIDARS["sparse"]),
    "n110": _Car(lidar=LIDARS["uneven"], zoom=0.78, camera_raise=-0.22),
    "n111": _Car(lidar=LIDARS["near"], lidar_ahead=3.3, lidar_pitch=12.0, camera_raise=0.8, camera_pitch=6.0),
}


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
        """Return translation, rotation and intrinsics of a sensor, as ``calibrated_sensor.json`` holds them."""
        mount = self.cameras.get(channel)
        pose = self.ego_from_lidar if mount is None else mount.ego_from_camera
        return {
            "translation": pose[:3, 3].tolist(),
            "rotation": quaternion(pose[:3, :3]),
            "camera_intrinsic": [] if mount is None else mount.model.intrinsics.tolist(),
        }


def rig(vehicle: str, *, cameras: tuple[str, ...], image_size: tuple[int, int]) -> Rig:
    """Build the car ``vehicle`` with the named cameras; ``image_size`` is width, height in pixels.

    Raises:
        ConfigError: the car is unknown.
    """
    if vehicle not in _CARS:
        raise ConfigError(f"There is no car named '{vehicle}'; choose one of: {', '.join(_CARS)}")
    car, lidar = _CARS[vehicle], _CARS[vehicle].lidar
    turn, shift = _mounting_error(vehicle, LIDAR)
    tilt = rotation(yaw=0.0, pitch=np.deg2rad(car.lidar_pitch))
    ego_from_lidar = rigid(
        turn @ tilt @ EGO_FROM_LIDAR, np.array([car.lidar_ahead, 0.0, lidar.mount_height]) + shift * [1, 1, 0]
    )
    mounts = {channel: _mount(vehicle, channel, lidar, image_size) for channel in cameras}
    return Rig(lidar=lidar, ego_from_lidar=ego_from_lidar, cameras=mounts)


def _mount(vehicle: str, channel: str, lidar: LidarModel, image_size: tuple[int, int]) -> CameraMount:
    car = _CARS[vehicle]
    degrees, place, focal = _MOUNTS[channel]
    width, height = image_size
    turn, shift = _mounting_error(vehicle, channel)
    rng = _constants(vehicle, channel, "lens")
    focal *= car.zoom * width * (1 + rng.uniform(-0.01, 0.01))
    centre = (width * (0.5 + rng.uniform(-0.02, 0.02)), height * (0.53 + rng.uniform(-0.02, 0.02)))
    intrinsics = np.array([[focal, 0.0, centre[0]], [0.0, focal, centre[1]], [0.0, 0.0, 1.0]])
    yaw = np.deg2rad(degrees)
    fraction = lidar.fraction_at(float(-yaw))
    return CameraMount(
        model=CameraModel(width=width, height=height, intrinsics=intrinsics),
        ego_from_camera=rigid(
            turn @ rotation(yaw=yaw, pitch=np.deg2rad(car.camera_pitch)) @ EGO_FROM_CAMERA,
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
    """Return the generator of a car's constants: the same in every root, whatever its seed."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256("/".join(path).encode()).digest()[:8], "big"))
