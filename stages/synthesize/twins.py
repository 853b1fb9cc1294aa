"""Synthetic twins: the city written in the format of another data set, from the same world, LiDAR and camera.

A twin is whole or it is not there: it is written beside its place and renamed at the end.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError, nearest
from ...files import fsync_folder, write_json
from ...progress import progress
from .passage import TwinScene
from .twin_a2d2 import a2d2_scenes, finish_a2d2, write_a2d2
from .twin_job import TwinJob
from .twin_lidar import finish_stf, kitti_scenes, stf_scenes, synlidar_scenes, write_kitti, write_stf, write_synlidar
from .twin_virtualkitti import virtualkitti_scenes, write_virtualkitti
from .workers import check_workers, in_processes

__all__ = ["TWINS", "synthesize_twin"]


@dataclass(frozen=True, kw_only=True)
class _Format:
    """How a format shares frames out over scenes, and how it writes one."""

    scenes: Callable[[int], Sequence[TwinScene]]
    write: Callable[[TwinJob], int]
    finish: Callable[[Sequence[TwinJob]], None] | None = None
    image_size: tuple[int, int] = (1242, 375)


#: Data set -> its format. (nuScenes has a writer of its own: ``synthesize``.)
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
    """Write the synthetic city to ``out`` as a data root of ``dataset``.

    Args:
        out: a folder that is not there or is empty.
        dataset: one of ``TWINS``.
        frames: frames of all scenes together.
        seed: equal arguments give equal files, byte for byte.
        image_size: width and height of the pictures in pixels; None takes those of the data set.
        azimuth_steps: of the LiDAR's turn.
        workers: processes; by default one for each processor this process may use.

    Returns:
        The root.

    Raises:
        ConfigError: an argument is out of range, or ``out`` holds something.
        RunError: a worker process was killed.
    """
    if dataset not in TWINS:
        raise ConfigError(f"There is no synthetic twin of '{dataset}'; {nearest(dataset, TWINS)} (option --format)")
    form = TWINS[dataset]
    check_workers(workers)
    fewest = len(form.scenes(1000))
    if not fewest <= frames <= 10_000 or seed < 0:
        raise ConfigError(
            f"A twin of {dataset} needs {fewest} to 10000 frames and a seed of 0 or more; got"
            f" {frames} frames and seed {seed}"
        )
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already; name a folder that is not, or is empty")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    size = image_size or form.image_size
    jobs = [
        TwinJob(
            out=partial,
            format=dataset,
            scene=scene,
            place=place,
            seed=seed,
            image_size=size,
            azimuth_steps=azimuth_steps,
        )
        for place, scene in enumerate(form.scenes(frames))
    ]
    with progress("Synthesising", frames, "frame", 0) as bar:
        for done in in_processes(form.write, jobs, workers):
            bar.update(done)
    if form.finish:
        form.finish(jobs)
    facts = {"dataset": dataset, "frames": frames, "seed": seed, "image_size": size, "azimuth_steps": azimuth_steps}
    write_json(partial / "synthetic.json", facts)
    if out.is_dir():
        out.rmdir()
    partial.rename(out)
    fsync_folder(out.parent)
    return out
