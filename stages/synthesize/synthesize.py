"""The synthetic city as a nuScenes data root, scene by scene, in any number of processes.

``synthetic.json`` (the arguments) is written first, then each scene with its rows in a parts folder; the table folder
is renamed into place last, so an incomplete root is never taken for a complete one. The same call resumes after an
interruption and skips finished scenes. Every byte depends on the arguments alone, not on the number of processes or on
interruptions.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ...errors import ConfigError, DiskSpaceError
from ...files import free_bytes, fsync_folder, read_json, write_json
from ...fingerprint import differences
from ...locks import exclusive_lock
from ...progress import progress
from ..datasets.nuscenes import CAMERAS
from ..datasets.reader_arguments import choose_cameras
from .nuscenes_tables import VERSION, Tokens, assemble_tables
from .nuscenes_writer import PARTS, SceneJob, write_map, write_scene
from .plan import BENCHMARK_GROUPS, GROUPS, plan_scenes
from .rigs import LIDAR
from .workers import in_processes

__all__ = ["FACTS", "PLANS", "Plan", "make_folders", "root_facts", "synthesize"]

Plan = Literal["city", "benchmark"]
PLANS = {"city": GROUPS, "benchmark": BENCHMARK_GROUPS}

FACTS = "synthetic.json"
IMAGE_SIZE = (800, 450)  #: width and height, pixels
FORMAT = 1  # incremented whenever equal arguments give other bytes
SWEEP_BYTES = 1_600_000
PIXEL_BYTES = 0.6
SPARE_BYTES = 50_000_000


def synthesize(
    out: Path,
    *,
    frames: int = 60,
    seed: int = 0,
    cameras: str | Sequence[str] = ("CAM_FRONT",),
    image_size: tuple[int, int] = IMAGE_SIZE,
    workers: int | None = None,
    plan: Plan = "city",
) -> Path:
    """Writes the synthetic city to ``out`` as a nuScenes root of version ``v1.0-trainval`` with lidarseg labels.

    ``out`` is a new or empty folder, or one that an equal call started; a finished equal root is left unchanged. Equal
    arguments give equal files, byte for byte. ``frames``: keyframes; ``plan`` says whether the scenes that they are
    divided into are those of two cities or the domains of the generalisation benchmark. ``cameras``: channels such as
    ``CAM_FRONT``, or ``all``; the tables list only these and the LiDAR. ``image_size``: width and height, pixels.
    ``workers``: processes; by default one per available processor. Returns the root.

    Raises:
        ConfigError: an argument is out of range, or ``out`` holds something else.
        DiskSpaceError: the disk has less free space than the root needs.
        RunError: another process writes to ``out``, or a worker process was killed.
    """
    plans = plan_scenes(frames, PLANS[plan])
    facts = root_facts(frames, seed=seed, cameras=cameras, image_size=image_size, plan=plan)
    out = Path(out).absolute()
    _claim(out, facts)
    if (out / VERSION).is_dir():
        shutil.rmtree(out / PARTS, ignore_errors=True)
        return out
    chosen = tuple(facts["cameras"])
    jobs = [SceneJob(out=out, plan=plan, seed=seed, cameras=chosen, image_size=image_size) for plan in plans]
    with exclusive_lock(out / PARTS, work="writes scenes"):
        pending = [job for job in jobs if not job.rows_path.exists()]
        left = sum(job.plan.keyframes for job in pending)
        _check_disk(out, frames=left, cameras=len(chosen), image_size=image_size)
        make_folders(out, chosen)
        with progress("Synthesising", frames, "frame", frames - left) as bar:
            for done in in_processes(write_scene, pending, workers):
                bar.update(done)
        _finish(out, jobs)
    return out


def root_facts(
    frames: int, *, seed: int, cameras: str | Sequence[str], image_size: tuple[int, int] = IMAGE_SIZE, plan: Plan
) -> dict[str, Any]:
    """Checks the arguments of ``synthesize`` and returns the identity of the root, as in its file ``FACTS``.

    Raises:
        ConfigError: an argument is out of range.
    """
    if seed < 0:
        raise ConfigError(f"The seed is {seed}; give 0 or more")
    facts = {
        "format": FORMAT,
        "frames": frames,
        "seed": seed,
        "cameras": list(choose_cameras(cameras, CAMERAS)),
        "image_size": list(image_size),
    }
    domains = list(dict.fromkeys(group.domain for group in PLANS[plan] if group.domain))
    return facts | ({"plan": plan, "domains": domains} if domains else {})  # the city, the first plan, has none


def _claim(out: Path, facts: dict[str, Any]) -> None:
    """Writes the facts into a new or empty folder, or checks that the folder holds the same ones."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder for the synthetic city")
    if out.is_dir() and any(path.name != FACTS and not path.name.endswith(".partial") for path in out.iterdir()):
        try:
            lines = differences(facts, dict(read_json(out / FACTS)))
        except (FileNotFoundError, ValueError, TypeError) as error:  # the last two: other JSON than an object
            raise ConfigError(
                f"{out} is not empty and holds no readable {FACTS}, so it is not a synthetic city; name another folder"
            ) from error
        if lines:
            raise ConfigError(
                f"{out} holds another synthetic city ({'; '.join(lines)}); name another folder or remove this one"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / FACTS, facts)


def _check_disk(out: Path, *, frames: int, cameras: int, image_size: tuple[int, int]) -> None:
    needed = SPARE_BYTES + int(frames * (SWEEP_BYTES + cameras * image_size[0] * image_size[1] * PIXEL_BYTES))
    free = free_bytes(out)
    if free < needed:
        raise DiskSpaceError(
            f"{frames} frames need about {needed / 1e9:.2f} GB and {out} has {free / 1e9:.2f} GB free; "
            "free some space, choose fewer --frames, or name a folder on another disk"
        )


def make_folders(out: Path, cameras: Sequence[str]) -> None:
    """Creates every folder of the root but the tables', and deletes partial files of an interrupted call."""
    data = [out / "samples" / channel for channel in (LIDAR, *cameras)]
    for folder in (*data, out / "sweeps" / LIDAR, out / "lidarseg" / VERSION, out / "maps", out / PARTS):
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*.partial"):
            partial.unlink()


def _finish(out: Path, jobs: Sequence[SceneJob]) -> None:
    """Writes the maps and all tables, renames the table folder into place, and removes the parts."""
    first = jobs[0]
    tokens = Tokens(first.seed)
    tables = assemble_tables(
        tokens=tokens,
        plans=[job.plan for job in jobs],
        scene_rows=(read_json(job.rows_path) for job in jobs),
        cameras=first.cameras,
        image_size=first.image_size,
    )
    for location in dict.fromkeys(job.plan.group.location for job in jobs):
        tiles = {job.plan.slot: job.tile_path for job in jobs if job.plan.group.location == location}
        write_map(out / "maps" / f"{tokens('map', location)}.png", tiles)
    unfinished = out / PARTS / VERSION
    unfinished.mkdir(exist_ok=True)
    for name, rows in tables.items():
        write_json(unfinished / f"{name}.json", rows)
    unfinished.rename(out / VERSION)
    fsync_folder(out)
    shutil.rmtree(out / PARTS, ignore_errors=True)  # an equal call deletes them too
