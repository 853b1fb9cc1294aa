"""A drive down a street in one of the cities, seen by a roof LiDAR and a front camera that share their stamps.

This is what the synthetic twins of other data sets are written from; the nuScenes root has rigs of its own.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64

from .camera import CameraModel, Picture, render
from .drive import Drive
from .knobs import Hour, Weather
from .lidar import Sweep, scan
from .lidar_models import LidarModel
from .poses import EGO_FROM_LIDAR, rigid
from .styles import city_style
from .world import World

__all__ = ["City", "Passage", "TwinScene"]

City = Literal["boston", "singapore"]

_START = 1.0  # seconds: the sweep that ends there began at a time above zero


@dataclass(frozen=True, kw_only=True)
class TwinScene:
    """A scene of a twin: its name in the data set's form, its street, hour and weather, and how long it is."""

    name: str
    frames: int
    city: City
    hour: Hour = "day"
    weather: Weather = "clear"
    extinction: float | None = None  #: of the air, 1 / metre; None: drawn as the weather has it
    word: str = ""  #: what the data set calls the weather


class Passage:
    """The car on its street, at one moment a frame.

    Args:
        scene: where and when.
        seed: with the scene's name, the source of everything that is drawn.
        lidar: the sensor on the roof, 0 m ahead of the ego frame's origin.
        period: seconds between frames.
    """

    def __init__(self, scene: TwinScene, *, seed: int, lidar: LidarModel, period: float) -> None:
        self._path = ("xd3d twin", seed, scene.name)
        style = city_style(scene.city, hour=scene.hour, weather=scene.weather, rng=self._rng("style"))
        if scene.extinction is not None:
            style = replace(style, light=replace(style.light, extinction=scene.extinction))
        length = (_START + scene.frames * period) * style.traffic.speed[1]
        self._world = World(style, int(self._rng("street").integers(2**31)), length=length)
        self._drive = Drive(world=self._world, rng=self._rng("drive"))
        self._lidar, self._period = lidar, period

    def time(self, order: int) -> float:
        """Seconds of the street's clock at frame ``order``."""
        return _START + order * self._period

    def world_from_ego(self, order: int) -> Float64[np.ndarray, "4 4"]:
        """The car's pose at frame ``order``: x forward, y left, z up, on the ground."""
        return self._drive.world_from_ego(self.time(order))

    def sweep(self, order: int) -> Sweep:
        """The sweep of frame ``order``, moved to its stamp; x right, y forward, z up."""
        time, mount = self.time(order), rigid(EGO_FROM_LIDAR, (0.0, 0.0, self._lidar.mount_height))
        start = self._drive.world_from_ego(time - self._lidar.spin_seconds) @ mount
        return scan(
            self._world, self._lidar, start, self.world_from_ego(order) @ mount, time, self._rng("lidar", order)
        )

    def picture(self, order: int, camera: CameraModel, ego_from_camera: Float64[np.ndarray, "4 4"]) -> Picture:
        """What a camera sees at the stamp of frame ``order``."""
        pose = self.world_from_ego(order) @ ego_from_camera
        return render(self._world, camera, pose, self.time(order), self._rng("camera", order))

    def _rng(self, *path: object) -> np.random.Generator:
        text = "/".join(map(str, (*self._path, *path)))
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))
