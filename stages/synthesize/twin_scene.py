"""One scene of a synthetic twin: its street and drive, a roof LiDAR and a front camera with equal stamps, its files.

The writers of all twins use this; the nuScenes root has rigs of its own.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64, UInt
from PIL import Image

from ...files import write_bytes
from .camera import CameraModel, Picture, render
from .lidar import Sweep, scan
from .lidar_models import LidarModel
from .poses import EGO_FROM_LIDAR, rigid
from .style_sampling import city_style
from .styles import Hour, Weather
from .world import Drive, World

__all__ = ["City", "Passage", "TwinJob", "TwinScene", "frames_per_scene", "twin_scenes", "write_file", "write_png"]

City = Literal["boston", "singapore"]

_START = 1.0  # seconds; the sweep that ends then starts at a positive time


@dataclass(frozen=True, kw_only=True)
class TwinScene:
    """A scene of a twin: its name in the data set, its city, hour and weather, and its number of frames."""

    name: str
    frames: int
    city: City
    hour: Hour = "day"
    weather: Weather = "clear"
    extinction: float | None = None  #: of the air, 1 / metre; None: drawn for the weather
    word: str = ""  #: the data set's name of the weather


@dataclass(frozen=True, kw_only=True)
class TwinJob:
    """One scene of a twin, to be written under ``out``; ``index`` counts the scenes from 0."""

    out: Path
    format: str
    scene: TwinScene
    index: int
    seed: int
    image_size: tuple[int, int]  #: width, height in pixels
    azimuth_steps: int  #: of one LiDAR rotation


class Passage:
    """The drive of a scene, sampled at one time per frame.

    Args:
        scene: street, hour and weather.
        seed: seeds all random numbers, together with the scene's name.
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
        """Returns the street's time in seconds at frame ``order``."""
        return _START + order * self._period

    def world_from_ego(self, order: int) -> Float64[np.ndarray, "4 4"]:
        """Returns the car's pose at frame ``order``: x forward, y left, z up, on the ground."""
        return self._drive.world_from_ego(self.time(order))

    def sweep(self, order: int) -> Sweep:
        """Returns the sweep of frame ``order``, motion-compensated to its stamp; x right, y forward, z up."""
        time, mount = self.time(order), rigid(EGO_FROM_LIDAR, (0.0, 0.0, self._lidar.mount_height))
        start = self._drive.world_from_ego(time - self._lidar.spin_seconds) @ mount
        return scan(
            self._world, self._lidar, start, self.world_from_ego(order) @ mount, time, self._rng("lidar", order)
        )

    def picture(self, order: int, camera: CameraModel, ego_from_camera: Float64[np.ndarray, "4 4"]) -> Picture:
        """Returns the picture of a camera at the stamp of frame ``order``."""
        pose = self.world_from_ego(order) @ ego_from_camera
        return render(self._world, camera, pose, self.time(order), self._rng("camera", order))

    def _rng(self, *path: object) -> np.random.Generator:
        text = "/".join(map(str, (*self._path, *path)))
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def frames_per_scene(frames: int, weights: Sequence[int]) -> list[int]:
    """Returns the frames of each scene: one each, the rest by weight; the first scenes get the remainder."""
    rest = frames - len(weights)
    counts = [1 + rest * weight // max(sum(weights), 1) for weight in weights]
    for index in range(frames - sum(counts)):
        counts[index % len(counts)] += 1
    return counts


def twin_scenes(cities: Mapping[str, City], frames: int, weights: Sequence[int]) -> list[TwinScene]:
    """Returns a scene for each name and city, with its part of ``frames``."""
    counts = frames_per_scene(frames, weights)
    return [
        TwinScene(name=name, city=city, frames=count)
        for (name, city), count in zip(cities.items(), counts, strict=True)
    ]


def write_file(path: Path, content: bytes) -> None:
    """Writes ``content`` atomically, and creates the folder of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)


def write_png(path: Path, pixels: UInt[np.ndarray, "height width *channels"]) -> None:
    """Writes an image of 8 bits in three channels, or of 16 bits in one."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    write_file(path, content.getvalue())
