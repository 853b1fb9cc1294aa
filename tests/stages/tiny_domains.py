"""Tiny domains on disk for the tests of stage two: real sweep and label files, random features."""

from pathlib import Path

import numpy as np
from xd3d.cache.schema import ImageFeatures, TapSpec
from xd3d.stages.datasets.index import FrameIndex, FrameTable, ImageTable
from xd3d.stages.datasets.labels import get_merge
from xd3d.stages.train.domain import Domain

SIZE = (160, 90)
# Raw nuScenes ids of the six merged classes, and one that is ignored.
RAW = (17, 24, 26, 27, 28, 30, 0)
SPECS = {
    "up1": TapSpec(name="up1", channels=12, height=3, width=5, extent=(2.8125, 5.0)),
    "up2": TapSpec(name="up2", channels=8, height=6, width=10, extent=(5.625, 10.0)),
    "rgb": TapSpec(name="rgb", channels=3, height=23, width=40, extent=(22.5, 40.0), dtype="uint8"),
}
AGENTS = 7


class FakeFeatures:
    """A feature source whose values depend only on the image's row."""

    taps = SPECS
    agents = AGENTS
    views = ("identity",)
    grid = SPECS["up2"]

    def require(self, rows):
        pass

    def read(self, rows):
        drawn = [self._image(int(row)) for row in rows]
        return ImageFeatures(
            maps={tap: np.stack([image[0][tap] for image in drawn]) for tap in SPECS},
            agents={tap: np.stack([image[1][tap] for image in drawn]) for tap in SPECS if tap != "rgb"},
            geometry=np.stack([image[2] for image in drawn]),
            assignment=np.stack([image[3] for image in drawn]),
            membership=np.stack([image[4] for image in drawn]),
        )

    def _image(self, row):
        rng = np.random.default_rng([5, row])
        maps = {}
        for tap, spec in SPECS.items():
            shape = (spec.channels, spec.height, spec.width)
            values = rng.integers(0, 256, shape) if tap == "rgb" else 3 + 2 * rng.standard_normal(shape)
            maps[tap] = values.astype(spec.dtype)
        agents = {tap: (3 + rng.standard_normal((AGENTS, SPECS[tap].channels))).astype("f2") for tap in ("up1", "up2")}
        geometry = rng.random((AGENTS, 5)).astype("f2")
        cells = (SPECS["up2"].height, SPECS["up2"].width)
        shares = np.sort(rng.dirichlet(np.full(AGENTS, 0.3), cells).transpose(2, 0, 1), axis=0)[:-5:-1]
        assignment = rng.random((AGENTS, *cells)).argsort(0)[:4].astype(np.uint8)
        return maps, agents, geometry, assignment, np.round(255 * shares).astype(np.uint8)


def write_domain(
    root: Path, *, frames: int = 4, cameras: int = 1, points: int = 300, seed: int = 0, lidar_only: bool = False
) -> Domain:
    """Write ``frames`` clouds of ``points`` points in front of the car, labelled by position."""
    root.mkdir(parents=True, exist_ok=True)
    for frame in range(frames):
        cloud, raw = _cloud(np.random.default_rng([seed, frame]), points)
        cloud.tofile(root / f"{frame}.bin")
        raw.tofile(root / f"{frame}.label")
    return open_domain(root, frames=frames, cameras=cameras, lidar_only=lidar_only)


def open_domain(root: Path, *, frames: int, cameras: int = 1, lidar_only: bool = False) -> Domain:
    """Open the domain that ``write_domain`` wrote."""
    index = FrameIndex(
        dataset="nuscenes",
        version="v1.0-mini",
        root=root,
        cameras=tuple(f"CAM_{number}" for number in range(cameras)),
        frames=FrameTable(
            key=np.array([f"frame-{number}" for number in range(frames)]),
            scene=np.array(["scene"] * frames),
            location=np.array(["boston"] * frames),
            description=np.array([""] * frames),
            split=np.array(["train"] * frames),
            sweep=np.array([f"{number}.bin" for number in range(frames)]),
            labels=np.array([f"{number}.label" for number in range(frames)]),
        ),
        images=_images(frames, cameras),
    )
    features = None if lidar_only else FakeFeatures()
    return Domain(index=index, frames=np.arange(frames), merge=get_merge("nuscenes-6"), features=features)


def _images(frames: int, cameras: int) -> ImageTable:
    """Level cameras that look along y, each turned a little further to the right, so that neighbours overlap."""
    count = frames * cameras
    camera_from_lidar = np.zeros((count, 4, 4))
    for row in range(count):
        turn = 0.9 * (row % cameras)
        forward, right = [np.sin(turn), np.cos(turn), 0], [np.cos(turn), -np.sin(turn), 0]
        camera_from_lidar[row, :3, :3] = [right, [0, 0, -1], forward]
        camera_from_lidar[row, 3, 3] = 1
    return ImageTable(
        frame=np.repeat(np.arange(frames), cameras),
        key=np.array([f"image-{row}" for row in range(count)]),
        camera=np.array([f"CAM_{row % cameras}" for row in range(count)]),
        path=np.array([""] * count),
        size=np.tile(SIZE, (count, 1)),
        intrinsics=np.tile([[90.0, 0, 80], [0, 90, 45], [0, 0, 1]], (count, 1, 1)),
        camera_from_lidar=camera_from_lidar,
    )


def _cloud(rng: np.random.Generator, points: int) -> tuple[np.ndarray, np.ndarray]:
    cloud = np.zeros((points, 5), np.float32)
    cloud[:, 0] = rng.uniform(-4, 4, points)
    cloud[:, 1] = rng.uniform(5, 12, points)
    cloud[:, 2] = rng.uniform(-1.5, 1.5, points)
    kind = np.digitize(cloud[:, 0], [-2.5, -1, 0, 1.5, 3])
    kind[rng.random(points) < 0.05] = 6
    return cloud, np.array(RAW, np.uint8)[kind]
