"""Calibrations of a user's folder: JSON or YAML with an entry per camera, or a text file of KITTI.

An entry has ``intrinsics``, as numbers or the name of another tool's file, and ``camera_from_lidar``, a matrix or
translation and rotation; it may have the lens (``model`` and ``distortion``) and the ``size`` of the images. An unknown
key is an error, since ignoring it could move every point.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from ...errors import DataError, nearest
from .calibration_checks import intrinsics_fault, pose_fault
from .camera_files import camera_file_kind, parse_calibration, plain_values, read_camera_file
from .kitti_calibration import read_kitti_calibration
from .lens import Lens
from .text_files import read_text

__all__ = ["FolderCamera", "read_folder_calibration"]

_KEYS = ("intrinsics", "camera_from_lidar", "lidar_from_camera", "model", "distortion", "size")
_PARTS = "{translation: [x, y, z], rotation: {w: ..., x: ..., y: ..., z: ...}}"
_UNIT = 2e-3  #: largest deviation of a quaternion's length from one: three decimals
_PINHOLE = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6", "s1", "s2", "s3", "s4", "tx", "ty")
_FISHEYE = ("k1", "k2", "k3", "k4")

#: Name of a lens model (OpenCV's, ROS's, Kalibr's) -> its kind, names of its coefficients, how many may be given.
_MODELS: Mapping[str, tuple[Literal["pinhole", "fisheye"], tuple[str, ...], tuple[int, ...]]] = {
    **dict.fromkeys(
        ("pinhole", "radtan", "plumb_bob", "rational_polynomial"), ("pinhole", _PINHOLE, (4, 5, 8, 12, 14))
    ),
    **dict.fromkeys(("fisheye", "equidistant", "kannala_brandt"), ("fisheye", _FISHEYE, (4,))),
}


class FolderCamera(NamedTuple):
    """The calibration of a camera, its lens if its images are stored distorted, and their size if the file has it."""

    intrinsics: Float64[np.ndarray, "3 3"]
    camera_from_lidar: Float64[np.ndarray, "4 4"]
    lens: Lens | None = None
    size: tuple[int, int] | None = None


def read_folder_calibration(path: Path) -> Mapping[str, FolderCamera]:
    """Returns the calibration of each camera in ``path``.

    Raises:
        MissingDataError: the file is missing.
        DataError: an entry lacks a key or has an unknown one, a matrix is no camera matrix or rigid transform, or the
            lens is none that OpenCV knows.
    """
    if path.suffix == ".txt":
        return {name: FolderCamera(*camera) for name, camera in read_kitti_calibration(path).items()}
    text = read_text(path, "calibration", "restore it, or correct dataset.yaml")
    try:
        cameras = parse_calibration(text)
    except ValueError as error:
        raise DataError(f"The calibration {path} is neither JSON nor YAML ({error}); write it again") from error
    if not isinstance(cameras, dict):
        held = "nothing" if cameras is None else f"a {type(cameras).__name__}"
        raise DataError(f"The calibration {path} must name cameras; it holds {held}")
    if kind := camera_file_kind(cameras):
        file = f"{path.name}:{next(iter(cameras))}" if kind.startswith("Kalibr") else path.name
        entry = f'{{"CAMERA": {{"intrinsics": "{file}", "camera_from_lidar": [[4x4]]}}}}'
        raise DataError(
            f"The calibration {path} is a file of {kind}: it does not say where the LiDAR is. Write a calibration.json"
            f" beside it, and name that in dataset.yaml: {entry}"
        )
    return {str(name): _camera(path, str(name), values) for name, values in cameras.items()}


def _camera(path: Path, name: str, values: Any) -> FolderCamera:
    where = f"The calibration {path}: {name}"
    if not isinstance(values, dict):
        raise DataError(f"{where} must have the keys {', '.join(_KEYS[:2])}; it is a {type(values).__name__}")
    for key in values:
        if key not in _KEYS:
            raise DataError(
                f"{where} has the unknown key '{key}'; the keys are 'intrinsics', 'camera_from_lidar' (or its inverse"
                " 'lidar_from_camera'), 'model', 'distortion' and 'size' (docs/data/folder.md)"
            )
    if isinstance(values.get("intrinsics"), str):
        file, _, camera = str(values["intrinsics"]).partition(":")
        found = read_camera_file(path.parent / file, camera or name)
        values = {**found, **values, "intrinsics": found["intrinsics"]}
    intrinsics = _numbers(f"{where}.intrinsics", values.get("intrinsics"), ((3, 3),))
    if fault := intrinsics_fault(intrinsics):
        raise DataError(f"{where}.intrinsics {fault}")
    camera_from_lidar = _pose(where, values)
    size = values.get("size")
    if size is not None:
        width, height = _numbers(f"{where}.size", size, ((2,),)).astype(int).tolist()
        size = (width, height)
    return FolderCamera(intrinsics, camera_from_lidar, _lens(where, values, intrinsics), size)


def _pose(where: str, values: Mapping[str, Any]) -> Float64[np.ndarray, "4 4"]:
    """``camera_from_lidar``, or the inverse of ``lidar_from_camera``."""
    inverted = "lidar_from_camera" in values
    if inverted and "camera_from_lidar" in values:
        raise DataError(f"{where} has camera_from_lidar and its inverse lidar_from_camera; leave one")
    key, pose = "lidar_from_camera" if inverted else "camera_from_lidar", np.eye(4)
    given = values.get(key)
    if isinstance(given, dict) and "data" not in given:
        pose[:3, :3], pose[:3, 3] = _parts(f"{where}.{key}", given)
    elif isinstance(given, list) and len(given) in (4, 7) and not any(isinstance(row, list) for row in given):
        raise DataError(f"{where}.{key} has {len(given)} numbers: quaternions are in several orders. Write {_PARTS}")
    else:
        rows = _numbers(f"{where}.{key}", given, ((4, 4), (3, 4)))
        pose[: len(rows)] = rows
    if fault := pose_fault(pose):
        raise DataError(f"{where}.{key} {fault}")
    return np.linalg.inv(pose) if inverted else pose


def _parts(where: str, given: Mapping[str, Any]) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "3"]]:
    """The rotation and the translation of a pose that names them."""
    if set(given) != {"translation", "rotation"}:
        raise DataError(f"{where} has the keys {', '.join(map(str, given))}; write {_PARTS}, or a matrix")
    shift, turn = given["translation"], given["rotation"]
    translation = _numbers(f"{where}.translation", _named(shift, "xyz"), ((3,),))
    if not isinstance(turn, dict) or "data" in turn:
        if isinstance(turn, list) and len(turn) == 4:
            raise DataError(f"{where}.rotation has 4 numbers: quaternions are in several orders. Write {_PARTS}")
        return _numbers(f"{where}.rotation", turn, ((3, 3),)), translation
    quaternion = _numbers(f"{where}.rotation (w, x, y, z)", _named(turn, "wxyz"), ((4,),))
    if abs(float(np.linalg.norm(quaternion)) - 1) > _UNIT:
        raise DataError(f"{where}.rotation is no rotation: the length of a quaternion is 1; correct {turn}")
    from pyquaternion import Quaternion

    return np.array(Quaternion(quaternion).rotation_matrix), translation


def _named(values: Any, names: str) -> Any:
    """The numbers of a mapping in the order of ``names``; None if it has others."""
    if not isinstance(values, dict):
        return values
    return [values[name] for name in names] if set(values) == set(names) else None


def _lens(where: str, values: Mapping[str, Any], intrinsics: Float64[np.ndarray, "3 3"]) -> Lens | None:
    """The lens of a camera; None for a pinhole camera without distortion."""
    model = str(values.get("model", "pinhole")).lower().replace("-", "_")
    if model not in _MODELS:
        raise DataError(f"{where}.model '{values['model']}' is unknown; {nearest(model, _MODELS)}")
    kind, names, counts = _MODELS[model]
    given = values.get("distortion", [0.0] * 4 if kind == "pinhole" else None)
    if isinstance(given, dict):
        for name in given:
            if name not in names:
                raise DataError(f"{where}.distortion has '{name}'; {model} has {', '.join(names)}")
        count = min(n for n in counts if not set(given) & set(names[n:]))
        given = [given.get(name, 0.0) for name in names[:count]]
    wanted = tuple((count,) for count in counts)
    distortion = _numbers(f"{where}.distortion ({', '.join(names)} of {model})", given, wanted)
    if kind == "pinhole" and not distortion.any():
        return None
    plain = {"stored": intrinsics.tolist(), "straight": intrinsics.tolist()}
    return Lens.from_json({"kind": kind, **plain, "distortion": distortion.tolist()})


def _numbers(where: str, values: Any, shapes: Sequence[tuple[int, ...]]) -> Float64[np.ndarray, "..."]:
    """The array of finite numbers ``values``, of one of ``shapes``."""
    wanted = " or ".join("x".join(map(str, shape)) for shape in shapes)
    if values is None:
        raise DataError(f"{where} is missing; it must be {wanted} numbers")
    try:
        array = np.array(plain_values(values), np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where} must be {wanted} numbers ({error})") from error
    if array.shape not in shapes or not np.isfinite(array).all():
        raise DataError(f"{where} must be {wanted} finite numbers; it is {array.tolist()}")
    return array
