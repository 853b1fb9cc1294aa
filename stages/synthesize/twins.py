"""Synthetic twins: the city written in the format of another data set, from the same world, LiDAR and camera.

A twin is written beside its final path and renamed at the end, so that it is never incomplete.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError, nearest
from ...files import fsync_folder, write_json
from ...locks import exclusive_lock
from ...progress import progress
from .twin_a2d2 import a2d2_scenes, finish_a2d2, write_a2d2
from .twin_lidar import finish_stf, kitti_scenes, stf_scenes, synlidar_scenes, write_kitti, write_stf, write_synlidar
from .twin_scene import TwinJob, TwinScene
from .twin_virtualkitti import virtualkitti_scenes, write_virtualkitti
from .workers import in_processes

__all__ = ["TWINS", "synthesize_twin"]


@dataclass(frozen=True, kw_only=True)
class _Format:
    """Scenes of a format for a number of frames, and the function that writes one."""

    scenes: Callable[[int], Sequence[TwinScene]]
    write: Callable[[TwinJob], int]
    finish: Callable[[Sequence[TwinJob]], None] | None = None
    image_size: tuple[int, int] = (1242, 375)


#: Data set -> its format. nuScenes has its own writer, ``synthesize``.
TWINS: Mapping[str, _Format] = {
    "semantickitti": _Format(scenes=kitti_scenes, write=write_kitti),
    "semanticstf": _Format(scenes=stf_scenes, write=write_stf, finish=finish_stf),
    "synlidar": _Format(scenes=synlidar_scenes, write=write_synlidar),
    "a2d2": _Format(scenes=a2d2_scenes, write=write_a2d2, finish=finish_a2d2, image_size=(1920, 1208)),
    "virtualkitti": _Format(scenes=virtualkitti_scenes, write=write_virtualkitti),
}


def synthesize_twin(
    out: Path,
    *,
    dataset: str,
    frames: int = 60,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    azimuth_steps: int = 1800,
    workers: int | None = None,
) -> Path:
    """Writes the synthetic city to ``out`` as a data root of ``dataset``.

    ``out`` is a new or an empty folder, or a link to one, ``dataset`` one of ``TWINS``. Equal arguments give equal
    files, byte for byte.
    ``frames``: frames of all scenes together; ``image_size``: width and height of the pictures in pixels (None: those
    of the data set); ``azimuth_steps``: of one LiDAR rotation; ``workers``: processes, by default one per available
    processor. Returns the root.

    Raises:
        ConfigError: an argument is out of range, or ``out`` is not empty, a mount point or the current folder.
        RunError: another process writes to ``out``, or a worker process was killed.
    """
    if dataset not in TWINS:
        raise ConfigError(f"There is no synthetic twin of '{dataset}'; {nearest(dataset, TWINS)} (option --format)")
    form = TWINS[dataset]
    fewest = len(form.scenes(1000))
    if not fewest <= frames <= 10_000 or seed < 0:
        raise ConfigError(
            f"A twin of {dataset} needs {fewest} to 10000 frames and a seed of 0 or more; got"
            f" {frames} frames and seed {seed}"
        )
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; give a new or an empty one")
    if out.is_mount() or out == Path.cwd():
        raise ConfigError(f"{out} is a mount point or the current folder and cannot be replaced; give a folder in it")
    partial = out.with_name(f"{out.name}.partial")
    size = image_size or form.image_size
    with exclusive_lock(partial, work="writes a data root"):
        root = partial / "root"
        shutil.rmtree(root, ignore_errors=True)
        jobs = [
            TwinJob(
                out=root, format=dataset, scene=scene, index=i, seed=seed, image_size=size, azimuth_steps=azimuth_steps
            )
            for i, scene in enumerate(form.scenes(frames))
        ]
        with progress("Synthesising", frames, "frame", 0) as bar:
            for done in in_processes(form.write, jobs, workers):
                bar.update(done)
        if form.finish:
            form.finish(jobs)
        facts = {"dataset": dataset, "frames": frames, "seed": seed, "image_size": size, "azimuth_steps": azimuth_steps}
        write_json(root / "synthetic.json", facts)
        root.rename(out)  # replaces an empty folder
        fsync_folder(out.parent)
        shutil.rmtree(partial)
    return out
