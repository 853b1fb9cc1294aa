"""Indexes for benchmarks that need no data set: of as many frames as wanted, and of pictures that are made for them."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from xd3d.stages.datasets.index import FrameIndex, FrameTable, ImageTable


@lru_cache
def bare_index(images: int, cameras: int) -> FrameIndex:
    """An index of as many images and frames as a data set has, and nothing else of it."""
    frames = images // cameras
    words = np.array([f"{row:032x}" for row in range(images)])
    names = [f"camera {camera}" for camera in range(cameras)]
    columns = ("key", "scene", "location", "description", "split", "sweep", "labels")
    return FrameIndex(
        dataset="made",
        version="",
        root=Path("/"),
        cameras=tuple(names),
        frames=FrameTable(**dict.fromkeys(columns, words[::cameras][:frames])),
        images=ImageTable(
            frame=np.arange(images) // cameras,
            key=words,
            camera=np.resize(names, images),
            path=words,
            size=np.zeros((images, 2), np.int64),
            intrinsics=np.zeros((images, 3, 3)),
            camera_from_lidar=np.zeros((images, 4, 4)),
        ),
    )


def pictures_index(folder: Path, count: int, size: tuple[int, int]) -> FrameIndex:
    """Writes ``count`` JPEGs of ``size`` (height, width) to ``folder``, which exists; returns an index of them."""
    rng, wide = np.random.default_rng(0), (size[1], size[0])
    paths = [f"{row}.jpg" for row in range(count)]
    for path in paths:
        coarse = rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(wide, Image.Resampling.BICUBIC).save(folder / path)
    index = bare_index(count, 1)
    images = replace(index.images, path=np.array(paths), size=np.tile(wide, (count, 1)))
    return replace(index, root=folder, images=images)
