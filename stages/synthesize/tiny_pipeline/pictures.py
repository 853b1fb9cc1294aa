"""Pictures to train on: random streets seen from a car, rendered in parallel into one array on disk.

A picture is decided by the recipe's seed and its own number alone, so the array can be filled by any number of
processes and after any break. Worlds come from the stream of ``random_style``, which no training or evaluation domain
uses; the held-out pictures come from worlds of their own.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from ....files import write_atomic
from ....progress import progress
from ....settings import Settings
from ..camera import CameraModel, camera_pose, render
from ..style_sampling import random_style
from ..workers import in_processes
from ..world import World

__all__ = ["PICTURE_SIZE", "Recipe", "render_pictures", "render_view"]

PICTURE_SIZE = (225, 400)
"""Height and width: the size at which stage one shows nuScenes images to the model."""

VIEWS_OF_A_WORLD = 2
BLOCK = 16
STREET_LENGTH = 200.0
SIDEWAYS_SHARE = 0.3
HELD_OUT_WORLDS = 1_000_000
"""World numbers from here on are for held-out pictures."""


class Recipe(Settings):
    """Settings of the tiny pipeline, stored in the work folder, so that a restart resumes only an equal run."""

    seed: int = Field(default=7, ge=0, description="decides worlds, views, initial weights and batches")
    day_only: bool = Field(default=False, description="clear daylight only: the control for exposure to night and fog")
    pictures: int = Field(default=2400, ge=2, description="pictures to train on")
    held_out: int = Field(default=48, ge=1, description="pictures of other worlds, for the closing check")
    vae_minutes: float = Field(default=24.0, gt=0, description="wall time for the autoencoder")
    unet_minutes: float = Field(default=48.0, gt=0, description="wall time for the UNet")


def render_view(recipe: Recipe, number: int, *, held_out: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """Renders picture ``number`` of the recipe: RGB, 225 x 400. Two consecutive numbers share a world, not a pose."""
    world_number = number // VIEWS_OF_A_WORLD + (HELD_OUT_WORLDS if held_out else 0)
    style = random_style(np.random.default_rng((recipe.seed, world_number)), day_only=recipe.day_only)
    world = World(style, recipe.seed * 10_000_000 + world_number, length=STREET_LENGTH)
    rng = np.random.default_rng((recipe.seed, world_number, 1 + number % VIEWS_OF_A_WORLD))
    distance = rng.uniform(0.0, STREET_LENGTH)
    x, y, yaw = world.lane_pose(distance)
    sideways = rng.random() < SIDEWAYS_SHARE
    yaw += rng.uniform(-np.pi, np.pi) if sideways else rng.normal(0.0, 0.06)
    height, width = PICTURE_SIZE
    imaging = style.imaging
    camera = CameraModel.from_field_of_view(width=width, height=height, degrees=imaging.field_of_view)
    pose = camera_pose(x, y, yaw, height=imaging.camera_height, pitch=float(np.deg2rad(imaging.camera_pitch)))
    return render(world, camera, pose, distance / world.cruise_speed, rng).image


def render_pictures(
    recipe: Recipe, folder: Path, *, workers: int, held_out: bool = False
) -> UInt8[np.ndarray, "pictures H W 3"]:
    """Renders the missing pictures of the recipe and returns all, memory-mapped.

    Blocks of pictures appear atomically in ``folder``; an interrupted run resumes where it stopped.
    """
    total = recipe.held_out if held_out else recipe.pictures
    name = "held_out" if held_out else "train"
    target = folder / f"{name}.npy"
    if not target.is_file():
        blocks = [range(first, min(first + BLOCK, total)) for first in range(0, total, BLOCK)]
        files = [folder / f"{name}-{block.start:06d}.npy" for block in blocks]
        missing = [(block, file) for block, file in zip(blocks, files, strict=True) if not file.is_file()]
        with progress(f"rendering {name} pictures", total, "picture", sum(map(len, blocks))) as bar:
            bar.update(-sum(len(block) for block, _ in missing))
            for done in in_processes(partial(_render_block, recipe, held_out), missing, workers):
                bar.update(done)
        pictures = np.concatenate([np.load(file) for file in files])
        write_atomic(target, lambda file: np.save(file, pictures))
        for file in files:
            file.unlink()
    return np.load(target, mmap_mode="r")


def _render_block(recipe: Recipe, held_out: bool, job: tuple[Sequence[int], Path]) -> int:
    numbers, file = job
    pictures = np.stack([render_view(recipe, number, held_out=held_out) for number in numbers])
    write_atomic(file, lambda stream: np.save(stream, pictures))
    return len(numbers)
