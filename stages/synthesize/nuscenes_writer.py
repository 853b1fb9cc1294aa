"""Renders one scene of the synthetic city and writes it in nuScenes format.

At 2 Hz the LiDAR sweep, its labels, the pictures and the boxes of a keyframe are written, with one more sweep just
before each keyframe but the first. The scene's table rows and its square of the map go to a parts folder; the row file
is written last, so a scene without it is unfinished and is rendered again.

Every scene has its own street. On its location's map it has a square and a rotation; this pose defines the global frame
of the tables. The map is the "semantic prior" of nuScenes: 255 on road and sidewalk, 0 elsewhere, 0.1 m per pixel, x to
the right and y upwards from the lower left corner.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from ...files import write_atomic, write_bytes, write_json
from .camera import render
from .classes import DRIVEABLE, SIDEWALK
from .lidar import Sweep, scan
from .nuscenes_rows import SceneRows, sights
from .nuscenes_tables import Tokens
from .plan import ScenePlan
from .poses import rigid, rotation
from .rigs import LIDAR, rig
from .sources import random_stream
from .style_sampling import city_style, in_district
from .world import Drive, World

__all__ = ["PARTS", "SceneJob", "global_from_world", "street_tile", "write_map", "write_scene", "write_tile"]

PARTS = ".parts"
KEYFRAME_PERIOD = 500_000
JPEG_QUALITY = 92
START_TIME = 1.0
TILE_METRES = 200
TILE_COLUMNS = 8
PIXELS_PER_METRE = 10
COARSENING = 2


@dataclass(frozen=True, kw_only=True)
class SceneJob:
    """The task of a worker: one scene."""

    out: Path
    plan: ScenePlan
    seed: int
    cameras: tuple[str, ...]
    image_size: tuple[int, int]  #: width, height in pixels

    @property
    def rows_path(self) -> Path:
        """The scene's table rows; the file exists once the scene is finished."""
        return self.out / PARTS / f"{self.plan.name}.json"

    @property
    def tile_path(self) -> Path:
        """The scene's square of the map."""
        return self.out / PARTS / f"{self.plan.name}.png"

    def rng(self, *path: object) -> np.random.Generator:
        """Returns the random stream of one purpose in this scene; streams of different paths are independent."""
        return random_stream("xd3d", self.seed, self.plan.name, *path)


def write_scene(job: SceneJob) -> int:
    """Renders and writes one scene; returns the number of its keyframes. The folders must exist."""
    recorder = _Recorder(job)
    for order in range(job.plan.keyframes):
        recorder.keyframe(job.plan.start + order * KEYFRAME_PERIOD, first=order == 0)
    recorder.finish()
    return job.plan.keyframes


class _Recorder:
    """A car on its street, whose sensor data are written. Timestamps are microseconds."""

    def __init__(self, job: SceneJob) -> None:
        group = job.plan.group
        style = city_style(group.city, hour=group.hour, weather=job.plan.weather, rng=job.rng("style"))
        if group.domain:
            style = in_district(style, group.location, job.rng("suburbs"))
        street = int(job.rng("street").integers(2**31))
        self._job = job
        self._rig = rig(group.vehicle, cameras=job.cameras, image_size=job.image_size)
        seconds = START_TIME + job.plan.keyframes * KEYFRAME_PERIOD / 1e6
        self._world = World(style, street, length=seconds * style.traffic.speed[1])
        self._drive = Drive(world=self._world, rng=job.rng("drive"))
        self._global_from_world = global_from_world(
            world=self._world, slot=job.plan.slot, angle=float(job.rng("angle").uniform(0, 2 * np.pi))
        )
        self._clock = job.rng("clock")
        self._rows = SceneRows(tokens=Tokens(job.seed), plan=job.plan)

    def keyframe(self, stamp: int, *, first: bool) -> None:
        """Writes a keyframe near ``stamp`` (with jitter, as of real clocks), and the sweep before it."""
        stamp += int(self._clock.integers(-2000, 2001))
        sample = self._rows.add_sample(stamp)
        if not first:
            self._sweep(sample, stamp - round(self._rig.lidar.spin_seconds * 1e6), keyframe=False)
        sweep = self._sweep(sample, stamp, keyframe=True)
        self._annotate(sample, stamp, sweep)
        for channel in self._rig.cameras:
            self._picture(sample, channel, stamp)

    def finish(self) -> None:
        """Writes the scene's square of the map, then its rows."""
        tile = street_tile(world=self._world, slot=self._job.plan.slot, global_from_world=self._global_from_world)
        write_tile(self._job.tile_path, tile)
        write_json(self._job.rows_path, self._rows.tables())

    def _time(self, stamp: int) -> float:
        """Returns the street's time in seconds."""
        return START_TIME + (stamp - self._job.plan.start) / 1e6

    def _global_from_ego(self, stamp: int) -> Float64[np.ndarray, "4 4"]:
        return self._global_from_world @ self._drive.world_from_ego(self._time(stamp))

    def _sweep(self, sample: str, stamp: int, *, keyframe: bool) -> Sweep:
        time = self._time(stamp)
        start, end = (
            self._drive.world_from_ego(moment) @ self._rig.ego_from_lidar
            for moment in (time - self._rig.lidar.spin_seconds, time)
        )
        sweep = scan(self._world, self._rig.lidar, start, end, time, self._job.rng(LIDAR, stamp))
        row = self._rows.add_data(
            sample=sample,
            channel=LIDAR,
            stamp=stamp,
            global_from_ego=self._global_from_ego(stamp),
            keyframe=keyframe,
        )
        write_bytes(self._job.out / row["filename"], sweep.points.astype("<f4").tobytes())
        if keyframe:
            write_bytes(self._job.out / self._rows.add_labels(row["token"]), sweep.labels.tobytes())
        return sweep

    def _picture(self, sample: str, channel: str, sweep_stamp: int) -> None:
        mount = self._rig.cameras[channel]
        stamp = sweep_stamp - round(mount.delay * 1e6) + int(self._clock.integers(-500, 501))
        time = self._time(stamp)
        picture = render(
            self._world,
            mount.model,
            self._drive.world_from_ego(time) @ mount.ego_from_camera,
            time,
            self._job.rng(channel, stamp),
        )
        row = self._rows.add_data(
            sample=sample,
            channel=channel,
            stamp=stamp,
            global_from_ego=self._global_from_ego(stamp),
            keyframe=True,
            size=self._job.image_size,
        )
        image = Image.fromarray(picture.image)
        write_atomic(
            self._job.out / row["filename"], lambda file: image.save(file, format="JPEG", quality=JPEG_QUALITY)
        )

    def _annotate(self, sample: str, stamp: int, sweep: Sweep) -> None:
        """Adds the box of every object that has a point of the sweep in it."""
        time = self._time(stamp)
        world_from_lidar = self._drive.world_from_ego(time) @ self._rig.ego_from_lidar
        points = sweep.points[:, :3].astype(np.float64) @ world_from_lidar[:3, :3].T + world_from_lidar[:3, 3]
        boxes = self._world.objects(time)
        for box, seen in zip(boxes, sights(boxes, points, world_from_lidar[:3, 3]), strict=True):
            if seen.points:
                self._rows.add_box(sample=sample, box=box, seen=seen, global_from_world=self._global_from_world)


def global_from_world(*, world: World, slot: int, angle: float) -> Float64[np.ndarray, "4 4"]:
    """Returns the pose of a street on its location's map.

    The middle of its lane is at the centre of square ``slot``; squares count row by row from the lower left. ``angle``:
    rotation of the street, radians anticlockwise.
    """
    column, row = slot % TILE_COLUMNS, slot // TILE_COLUMNS
    turn = rotation(yaw=angle)
    x, y, _ = world.lane_pose(world.length / 2)
    middle = np.array([column + 0.5, row + 0.5, 0.0]) * TILE_METRES
    return rigid(turn, middle - turn @ [x, y, 0.0])


def street_tile(
    *, world: World, slot: int, global_from_world: Float64[np.ndarray, "4 4"]
) -> UInt8[np.ndarray, "tile tile"]:
    """Draws the mask of one square, top row first; pixels of 0.1 m, looked up every 0.2 m."""
    step = COARSENING / PIXELS_PER_METRE
    offsets = (np.arange(round(TILE_METRES / step)) + 0.5) * step
    x = slot % TILE_COLUMNS * TILE_METRES + offsets
    y = slot // TILE_COLUMNS * TILE_METRES + offsets[::-1]
    grid = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 0.0, 1.0))
    world_x, world_y = np.tensordot(np.linalg.inv(global_from_world)[:2], grid, axes=1)
    mask = np.isin(world.ground.classes(world_x, world_y), (DRIVEABLE, SIDEWALK)).astype(np.uint8) * np.uint8(255)
    return mask.repeat(COARSENING, axis=0).repeat(COARSENING, axis=1)


def write_tile(path: Path, tile: UInt8[np.ndarray, "height width"]) -> None:
    """Stores a mask as an 8-bit grey PNG."""
    write_atomic(path, lambda file: Image.fromarray(tile).save(file, format="PNG", compress_level=1))


def write_map(path: Path, tiles: Mapping[int, Path]) -> None:
    """Joins the squares of a location, given by slot, to one mask; a square without a street stays 0."""
    side = TILE_METRES * PIXELS_PER_METRE
    rows = max(tiles) // TILE_COLUMNS + 1
    columns = min(TILE_COLUMNS, max(tiles) + 1)
    mask = np.zeros((rows * side, columns * side), np.uint8)
    for slot, tile in tiles.items():
        top, left = (rows - 1 - slot // TILE_COLUMNS) * side, slot % TILE_COLUMNS * side
        with Image.open(tile) as image:
            mask[top : top + side, left : left + side] = np.asarray(image)
    write_tile(path, mask)
