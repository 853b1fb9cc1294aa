"""One scene of a synthetic twin: its street and drive, a roof LiDAR and a front camera with equal stamps, its files.

The writers of all twins use this; the nuScenes root has rigs of its own.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt
from PIL import Image

from ...files import write_bytes
from . import classes
from .camera import CameraModel, Picture, render
from .lidar import LidarModel, Sweep, scan
from .poses import EGO_FROM_LIDAR, rigid
from .sources import random_stream
from .style_sampling import city_style
from .styles import Hour, Weather
from .world import Drive, World

__all__ = [
    "City",
    "Passage",
    "TwinJob",
    "TwinScene",
    "class_names",
    "class_table",
    "frames_per_scene",
    "twin_scenes",
    "write_file",
    "write_png",
]

City = Literal["boston", "singapore"]

_START = 1.0  # seconds; the sweep that ends then starts at a positive time
_FORMATS = ("semantickitti", "semanticstf", "synlidar", "a2d2", "virtualkitti")
#: City class -> its name in each of ``_FORMATS``.
_NAMES = {
    classes.NOISE: ("outlier", "invalid", "unlabeled", "Sky", "Sky"),
    classes.ADULT: ("person", "person", "male", "Pedestrian 1", "Misc"),
    classes.CHILD: ("person", "person", "kid", "Pedestrian 2", "Misc"),
    classes.CONSTRUCTION_WORKER: ("moving-person", "person", "female", "Pedestrian 3", "Misc"),
    classes.BARRIER: ("fence", "fence", "fence", "Road blocks", "GuardRail"),
    classes.CONE: ("other-object", "unlabeled", "traffic-cone", "Traffic guide obj.", "TrafficSign"),
    classes.BICYCLE: ("bicycle", "bicycle", "bicycle", "Bicycle 1", "Misc"),
    classes.BUS: ("bus", "other-vehicle", "bus", "Truck 2", "Van"),
    classes.CAR: ("car", "car", "car", "Car 1", "Car"),
    classes.CONSTRUCTION_VEHICLE: ("other-vehicle", "other-vehicle", "other-vehicle", "Utility vehicle 1", "Misc"),
    classes.MOTORCYCLE: ("motorcycle", "motorcycle", "motorcycle", "Small vehicles 1", "Misc"),
    classes.TRAILER: ("other-vehicle", "other-vehicle", "other-vehicle", "Truck 3", "Truck"),
    classes.TRUCK: ("truck", "truck", "truck", "Truck 1", "Truck"),
    classes.DRIVEABLE: ("road", "road", "road", "RD normal street", "Road"),
    classes.SIDEWALK: ("sidewalk", "sidewalk", "sidewalk", "Sidewalk", "Terrain"),
    classes.TERRAIN: ("terrain", "terrain", "terrain", "Nature object", "Terrain"),
    classes.MANMADE: ("building", "building", "building", "Buildings", "Building"),
    classes.VEGETATION: ("vegetation", "vegetation", "vegetation", "Nature object", "Tree"),
}


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

    ``seed`` and the scene's name seed all random numbers; ``lidar`` is the sensor on the roof, 0 m ahead of the ego
    frame's origin; ``period``: seconds between frames.
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
        return random_stream(*self._path, *path)


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


def class_names(dataset: str) -> dict[int, str]:
    """Returns label of the city -> name of the class in ``dataset``, one of the formats of twins."""
    return {label: row[_FORMATS.index(dataset)] for label, row in _NAMES.items()}


def class_table(dataset: str, values: Mapping[str, int | Sequence[int]]) -> Int64[np.ndarray, "city *value"]:
    """Returns a lookup table from the city's labels to the ``values`` of class names of ``dataset``."""
    names = class_names(dataset)
    table = np.zeros((max(names) + 1, *np.shape(next(iter(values.values())))), np.int64)
    for label, name in names.items():
        table[label] = values[name]
    return table


def write_file(path: Path, content: bytes) -> None:
    """Writes ``content`` atomically, and creates the folder of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)


def write_png(path: Path, pixels: UInt[np.ndarray, "height width *channels"]) -> None:
    """Writes an image of 8 bits in three channels, or of 16 bits in one."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    write_file(path, content.getvalue())
