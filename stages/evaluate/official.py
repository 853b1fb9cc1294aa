"""Writes predictions as files for the official evaluators of nuScenes-lidarseg and SemanticKITTI.

| data set | file of a frame | number of a point |
|---|---|---|
| nuScenes | ``lidarseg/<eval set>/<sample_data token>_lidarseg.bin`` | uint8, class 1 to 16 of the challenge |
| SemanticKITTI | ``sequences/<sequence>/predictions/<frame>.label`` | uint32, raw semantic id |

0 means no class in both. A merged class is written as the first of the official classes it contains (``merges``).
SemanticKITTI's evaluator reads the merge from a file, which is written beside the predictions. That of nuScenes has no
merges: only predictions of all 16 classes, for every point, are a submission and get a ``submission.json``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import yaml
from jaxtyping import Int64, Integer

from ...errors import ConfigError
from ...files import write_atomic, write_bytes, write_json
from ...progress import track
from ..datasets.catalogue import NUSCENES_16, RAW_NAMES, SEMANTICKITTI
from ..datasets.index import FrameIndex
from ..datasets.labels import LabelMerge
from ..datasets.nuscenes import LABEL_SUFFIX, evaluation_set, sweep_token

__all__ = [
    "NO_CLASS",
    "finish_export",
    "official_ids",
    "prediction_path",
    "read_prediction",
    "require_official",
    "write_archive",
    "write_prediction",
]

#: Class of a point without a class, in the arrays that ``write_prediction`` takes.
NO_CLASS = -1

_NUSCENES, _KITTI = "nuscenes", "semantickitti"
_DTYPES = {_NUSCENES: "u1", _KITTI: "<u4"}

#: The benchmark's split of SemanticKITTI, in the format of its evaluator.
_KITTI_SPLIT = {"train": [*range(8), 9, 10], "valid": [8], "test": [*range(11, 22)]}

#: Sweeps of the benchmark's test sequences.
_KITTI_SWEEPS = {
    **{"11": 921, "12": 1061, "13": 3281, "14": 631, "15": 1901, "16": 1731},
    **{"17": 491, "18": 1801, "19": 4981, "20": 831, "21": 2721},
}


def require_official(dataset: str) -> None:
    """Checks that there is an official file format for predictions on ``dataset``.

    Raises:
        ConfigError: there is none.
    """
    if dataset not in _DTYPES:
        raise ConfigError(
            f"There is no official file format for predictions on {dataset}; --export and --submission write those"
            f" of {', '.join(_DTYPES)}. Label the sweeps with: xd3d predict --dataset {dataset}"
        )


def official_ids(merge: LabelMerge, dataset: str) -> Int64[np.ndarray, "classes"]:
    """Returns the official number of each class of ``merge``: the first of those that it merges."""
    if dataset == _KITTI:
        return merge.raw_ids
    return np.array([NUSCENES_16.index(RAW_NAMES[_NUSCENES][int(raw)]) + 1 for raw in merge.raw_ids], np.int64)


def prediction_path(index: FrameIndex, row: int) -> Path:
    """Returns the path of the prediction for the frame in ``row``, relative to the folder of predictions.

    Raises:
        DataError: the token of a nuScenes sweep without a label file is not in the tables.
    """
    if index.dataset == _KITTI:
        scene, _, frame = str(index.frames.key[row]).rpartition("/")
        return Path("sequences", scene, "predictions", f"{frame}.label")
    return Path("lidarseg", evaluation_set(index, row), sweep_token(index, row) + LABEL_SUFFIX)


def write_prediction(
    out: Path, index: FrameIndex, row: int, classes: Int64[np.ndarray, "points"], ids: Int64[np.ndarray, "classes"]
) -> None:
    """Writes the classes of the points of the sweep in ``row`` by their numbers in ``ids``; ``NO_CLASS`` as 0."""
    path = out / prediction_path(index, row)
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.append(ids, 0)[classes].astype(_DTYPES[index.dataset])
    write_bytes(path, numbers.tobytes())


def read_prediction(out: Path, index: FrameIndex, row: int) -> Integer[np.ndarray, "points"]:
    """Returns the official numbers of the points of the sweep in ``row``; 0 is none."""
    return np.fromfile(out / prediction_path(index, row), _DTYPES[index.dataset])


def write_archive(path: Path, out: Path, index: FrameIndex, rows: Sequence[int]) -> None:
    """Writes the zip file of a submission: the predictions of ``rows`` in ``out``, and nuScenes' ``submission.json``.

    Each folder has its own entry, as the validator of SemanticKITTI requires.
    """
    files = [prediction_path(index, row) for row in rows]
    if index.dataset == _NUSCENES:
        files += [Path(name, "submission.json") for name in sorted({evaluation_set(index, row) for row in rows})]
    folders = sorted({folder for file in files for folder in file.parents if folder.parts})

    def write(target: BinaryIO) -> None:
        with ZipFile(target, "w", ZIP_DEFLATED) as archive:
            for folder in folders:
                archive.mkdir(folder.as_posix())
            for file in track(files, "zip", len(files), "file"):
                archive.write(out / file, file.as_posix())

    write_atomic(path, write)


def finish_export(out: Path, index: FrameIndex, merge: LabelMerge, *, every_point: bool, images: bool) -> list[str]:
    """Writes the metadata beside the predictions in ``out``; returns their faults.

    A fault is something that an official evaluator would reject or count as an error.
    ``every_point``: every point has a class. ``images``: images were used.
    """
    if index.dataset == _KITTI:
        _write_kitti_config(out / f"{merge.name}.yaml", merge)
        config = f"evaluate with --datacfg {merge.name}.yaml"
        merged = merge.name != "semantickitti-19"
        tested = {str(scene) for scene in index.frames.scene if (out / "sequences" / str(scene)).is_dir()}
        absent = [f"{number}" for number in _KITTI_SPLIT["test"] if str(number) not in tested]
        partial = 0 < len(absent) < len(_KITTI_SPLIT["test"])
        short = [
            f"{name} ({count} of {whole})"
            for name, whole in _KITTI_SWEEPS.items()
            if name in tested and (count := len(list((out / f"sequences/{name}/predictions").iterdir()))) < whole
        ]
        return [
            *([f"the benchmark takes every sweep, and some are missing: of {', '.join(short)}"] if short else []),
            *([f"the benchmark takes sequences 11 to 21, and {', '.join(absent)} are missing"] if partial else []),
            *([f"the classes of {merge.name} are not the benchmark's: {config}"] if merged else []),
            *([] if every_point else ["points without a class are counted as errors"]),
        ]
    sets = sorted(folder.name for folder in (out / "lidarseg").glob("*") if folder.is_dir())
    return [fault for name in sets for fault in _nuscenes_faults(out, index, merge, name, every_point, images)]


def _nuscenes_faults(
    out: Path, index: FrameIndex, merge: LabelMerge, name: str, every_point: bool, images: bool
) -> list[str]:
    """Returns why the predictions of one evaluation set are no submission; if nothing is wrong, writes its file."""
    rows = [row for row in range(len(index.frames.key)) if evaluation_set(index, row) == name]
    missing = sum(not (out / prediction_path(index, row)).exists() for row in rows)
    faults = []
    if len(merge.classes) != len(NUSCENES_16):
        faults.append(f"{merge.name} has {len(merge.classes)} classes, not 16; train with data.merge=nuscenes-16")
    if not every_point:
        faults.append("some points have no class: train with fusion.head=distil, or with data.points=all")
    if missing:
        faults.append(f"{missing} of {len(rows)} keyframes of {name} are missing; export more (--domain all)")
    path = out / name / "submission.json"
    if faults:
        path.unlink(missing_ok=True)
        return [f"{name} is no submission: {fault}" for fault in faults]
    path.parent.mkdir(exist_ok=True)
    used = {"camera": images, "lidar": True, "radar": False, "map": False, "external": images}
    write_json(path, {"meta": {f"use_{what}": use for what, use in used.items()}})
    return []


def _write_kitti_config(path: Path, merge: LabelMerge) -> None:
    """Writes the merge in the format that ``evaluate_semantics.py`` of semantic-kitti-api reads."""
    classes = range(len(merge.classes) + 1)
    config = {
        "labels": dict(SEMANTICKITTI),
        "learning_map": {raw: max(int(merge.lut[raw]), NO_CLASS) + 1 for raw in SEMANTICKITTI},
        "learning_map_inv": dict(zip(classes, [0, *merge.raw_ids.tolist()], strict=True)),
        "learning_ignore": {number: number == 0 for number in classes},
        "split": _KITTI_SPLIT,
    }
    text = yaml.safe_dump(config, sort_keys=False)
    write_bytes(path, text.encode())
