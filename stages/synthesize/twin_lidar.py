"""Twins of the data sets in SemanticKITTI's layout: SemanticKITTI itself, SemanticSTF and SynLiDAR."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt32

from ..datasets.catalogue import RAW_NAMES
from .camera import CameraModel
from .lidar import Sweep
from .poses import EGO_FROM_CAMERA, rigid
from .rigs import LIDARS
from .twin_scene import (
    City,
    Passage,
    TwinJob,
    TwinScene,
    class_table,
    frames_per_scene,
    twin_scenes,
    write_file,
    write_png,
)

__all__ = [
    "finish_stf",
    "kitti_scenes",
    "raw_ids",
    "stf_scenes",
    "synlidar_scenes",
    "write_kitti",
    "write_stf",
    "write_synlidar",
]

_PERIOD = 0.5
_CAMERA_0 = rigid(EGO_FROM_CAMERA, (0.27, 0.0, 1.65))
#: Metres from camera 0 to cameras 0 to 3, to the right (the third is the left colour camera).
_BASELINES = (0.0, 0.537, -0.06, 0.473)
_THINGS = 1 << 16  # instance 1


def kitti_scenes(frames: int) -> list[TwinScene]:
    """Returns sequences of every split: two of Boston to train on, and 07, 08 and one without labels in Singapore."""
    cities: dict[str, City] = {"00": "boston", "01": "boston", "07": "singapore", "08": "singapore", "11": "singapore"}
    return twin_scenes(cities, frames, (30, 20, 20, 25, 5))


def stf_scenes(frames: int) -> list[TwinScene]:
    """Returns a street of Boston in each weather for val, in two of them for train, and in one for test."""
    extinctions = {"dense_fog": 0.055, "light_fog": 0.02, "rain": 0.012, "snow": 0.03}
    names = [("train", "light_fog"), ("train", "snow"), *(("val", word) for word in extinctions), ("test", "rain")]
    counts = frames_per_scene(frames, (25, 25, 10, 10, 10, 10, 10))
    return [
        TwinScene(
            name=f"{split}/{word}",
            city="boston",
            weather="fog" if word.endswith("fog") else "rain",
            extinction=extinctions[word],
            word=word,
            frames=count,
        )
        for (split, word), count in zip(names, counts, strict=True)
    ]


def synlidar_scenes(frames: int) -> list[TwinScene]:
    """Returns three sequences."""
    return twin_scenes({"00": "boston", "01": "singapore", "02": "boston"}, frames, (40, 30, 30))


def write_kitti(job: TwinJob) -> int:
    """Writes a sequence of SemanticKITTI: velodyne, labels (up to 10), image_2, calib.txt, poses.txt, times.txt."""
    folder = job.out / "dataset" / "sequences" / job.scene.name
    passage, labelled = _passage(job), int(job.scene.name) < 11
    camera = _camera(job.image_size)
    ego_from_camera = _CAMERA_0 @ rigid(np.eye(3), (_BASELINES[2], 0.0, 0.0))
    for order in range(job.scene.frames):
        _write_frame(folder, f"{order:06d}", passage.sweep(order), job, labelled=labelled)
        image = passage.picture(order, camera, ego_from_camera).image
        write_png(folder / "image_2" / f"{order:06d}.png", image)
    _write_calibration(folder, camera)
    orders = range(job.scene.frames)
    poses = [passage.world_from_ego(order) @ _CAMERA_0 for order in orders]
    first = np.linalg.inv(poses[0])
    _write_text(folder / "poses.txt", [_numbers((first @ pose)[:3], ".6e") for pose in poses])
    _write_text(folder / "times.txt", [f"{order * _PERIOD:.6e}" for order in orders])
    return job.scene.frames


def write_stf(job: TwinJob) -> int:
    """Writes the frames of one split of SemanticSTF in one weather; ``finish_stf`` writes the lists of the splits."""
    passage, split = _passage(job), job.scene.name.partition("/")[0]
    for order, stem in enumerate(_stf_stems(job)):
        _write_frame(job.out / split, stem, passage.sweep(order), job, labelled=True, ring=True)
    return job.scene.frames


def write_synlidar(job: TwinJob) -> int:
    """Writes a sequence of SynLiDAR: velodyne and labels."""
    passage = _passage(job)
    for order in range(job.scene.frames):
        _write_frame(job.out / job.scene.name, f"{order:06d}", passage.sweep(order), job, labelled=True)
    return job.scene.frames


def finish_stf(jobs: Sequence[TwinJob]) -> None:
    """Writes the list of each split, with one frame and its weather per line."""
    for split in ("train", "val", "test"):
        own = [job for job in jobs if job.scene.name.startswith(f"{split}/")]
        lines = sorted(f"{stem},{job.scene.word}" for job in own for stem in _stf_stems(job))
        _write_text(jobs[0].out / split / f"{split}.txt", lines)


def _stf_stems(job: TwinJob) -> list[str]:
    return [f"2018-02-{3 + job.index:02d}_20-51-45_{10 * order:05d}" for order in range(job.scene.frames)]


def raw_ids(dataset: str) -> Int64[np.ndarray, "city"]:
    """Returns a lookup table from the city's labels to the raw ids of ``dataset``."""
    return class_table(dataset, {name: number for number, name in sorted(RAW_NAMES[dataset].items(), reverse=True)})


def _passage(job: TwinJob) -> Passage:
    lidar = replace(LIDARS["dense"], spin_seconds=0.1, mount_height=1.73, azimuth_steps=job.azimuth_steps)
    return Passage(job.scene, seed=job.seed, lidar=lidar, period=_PERIOD)


def _write_frame(folder: Path, stem: str, sweep: Sweep, job: TwinJob, *, labelled: bool, ring: bool = False) -> None:
    right, forward, up, intensity, beam = sweep.points.T
    columns: list[Float32[np.ndarray, " P"]] = [forward, -right, up]
    columns += [intensity, beam] if ring else [intensity / 255]
    write_file(folder / "velodyne" / f"{stem}.bin", np.stack(columns, axis=1).astype("<f4").tobytes())
    if labelled:
        labels: UInt32[np.ndarray, " P"] = raw_ids(job.format)[sweep.labels].astype("<u4")
        if job.format == "semantickitti":
            labels[(labels >= 10) & (labels < 40)] |= _THINGS
        write_file(folder / "labels" / f"{stem}.label", labels.tobytes())


def _camera(size: tuple[int, int]) -> CameraModel:
    """A colour camera of KITTI's field of view."""
    width, height = size
    focal = 721.5377 / 1242 * width
    intrinsics = np.array([[focal, 0, 0.4908 * width], [0, focal, 0.461 * height], [0, 0, 1]])
    return CameraModel(width, height, intrinsics)


def _write_calibration(folder: Path, camera: CameraModel) -> None:
    lines = []
    for number, right in enumerate(_BASELINES):
        matrix = camera.intrinsics @ np.concatenate([np.eye(3), [[-right], [0], [0]]], axis=1)
        lines.append(f"P{number}: {_numbers(matrix, '.12e')}")
    ego_from_lidar = rigid(np.eye(3), (0.0, 0.0, 1.73))
    lines.append(f"Tr: {_numbers((np.linalg.inv(_CAMERA_0) @ ego_from_lidar)[:3], '.12e')}")
    _write_text(folder / "calib.txt", lines)


def _numbers(matrix: Float64[np.ndarray, "rows columns"], form: str) -> str:
    return " ".join(format(float(value), form) for value in matrix.ravel())


def _write_text(path: Path, lines: Sequence[str]) -> None:
    write_file(path, "".join(f"{line}\n" for line in lines).encode())
