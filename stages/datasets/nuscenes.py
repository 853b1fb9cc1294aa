"""nuScenes with lidarseg labels: builds an index from the official tables, and checks and reads the files."""

from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float64, UInt

from ...errors import DataError, Xd3dError
from .calibration_checks import check_calibration
from .catalogue import NUSCENES_32
from .checks import Faults
from .index import FrameIndex, FrameTable, ImageRow, ImageTable
from .label_files import check_raw_files, read_raw_labels
from .nuscenes_root import check_root, check_tables, find_version, label_paths, safe_path
from .nuscenes_tables import KeyframeTables, Record, read_keyframes, sensor_channels, stream_rows
from .projection import image_pixels as pixels
from .reader_arguments import choose_cameras
from .sweeps import COLUMNS, Sweep, load_sweep

__all__ = [
    "CAMERAS",
    "LABEL_SUFFIX",
    "build_index",
    "check_files",
    "evaluation_set",
    "pixels",
    "read_labels",
    "read_sweep",
    "sweep_token",
]

#: The cameras of nuScenes, clockwise from the front, in the order of an index.
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")

#: Label files and predictions are named by the token of the sweep, and this.
LABEL_SUFFIX = "_lidarseg.bin"

_PUBLISHED = ("CAM_FRONT",)
_LIDAR = "LIDAR_TOP"
_ALLOW = "Or leave out what is incomplete: xd3d prepare --allow-missing"
_COLUMNS = COLUMNS[".pcd.bin"]


def build_index(
    root: Path,
    *,
    version: str | None = None,
    cameras: str | Sequence[str] | None = None,
    allow_missing: bool = False,
    follow_links: bool = False,
) -> FrameIndex:
    """Indexes the keyframes of a nuScenes data root, sorted by scene and time.

    ``follow_links``: files that the tables name may be links that lead out of the root.

    ``cameras``: names, in one string with commas or as a sequence; "all" selects every camera of the root.
    None selects ``CAM_FRONT``, as in the published settings.
    ``frames.split`` is the official split of the scene: "train", "val", or "test" (without labels). ``allow_missing``
    skips keyframes that have no labels, or no record of a sensor, in the tables.

    Raises:
        MissingDataError: the root, the version or a table is missing.
        DataError: tables are damaged, inconsistent, or name files outside the root.
        ConfigError: unknown camera.
    """
    root = check_root(root)
    version = find_version(root, version)
    check_tables(root, version)
    labels = label_paths(root, version)
    try:
        channels = sensor_channels(root / version)
        present = set(channels.values())
        chosen = choose_cameras(
            _PUBLISHED if cameras is None else cameras, [name for name in CAMERAS if name in present]
        )
        tables = read_keyframes(root / version, channels, {_LIDAR, *chosen})
        samples = sorted(tables.samples, key=lambda s: (tables.scenes[s["scene_token"]]["name"], s["timestamp"]))
        left_out = _incomplete(tables, samples, chosen, labels) if allow_missing else {}
        samples = [sample for sample in samples if sample["token"] not in left_out]
        safe = partial(safe_path, root, follow_links=follow_links)
        frames = _frame_table(tables, samples, labels, safe)
        mounting = cache(lambda token, *, inverse=False: _transform(tables.sensors[token], inverse=inverse))
        rows = [
            _image_row(tables, mounting, sample, frame, camera, safe)
            for frame, sample in enumerate(samples)
            for camera in chosen
        ]
    except Xd3dError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"The tables in {root / version} are inconsistent (missing or of a wrong type: {error!r});"
            " unpack the metadata of one version again"
        ) from error
    if not samples and not left_out:
        raise DataError(f"The tables in {root / version} hold no keyframe; unpack the metadata again")
    return FrameIndex(
        dataset="nuscenes",
        version=version,
        root=root,
        cameras=chosen,
        frames=frames,
        images=ImageTable.of(rows),
        left_out=left_out,
    )


def check_files(index: FrameIndex) -> Faults:
    """Checks every file of the index, with a progress bar; returns the faults in the order of the frames.

    Images: header, size as in the tables, end marker. Sweeps: whole rows of 20 bytes, usable coordinates. Labels: one
    byte per point of the sweep, 0 to 31. An image is decoded only if its end marker is not at the end of its file, so
    34,000 images take minutes, not hours.
    """
    return check_raw_files(index, columns=_COLUMNS, dtype="u1", ids=range(len(NUSCENES_32)))


def read_sweep(index: FrameIndex, row: int) -> Sweep:
    """Returns the points of a keyframe: x right, y forward, z up."""
    return load_sweep(index.root / str(index.frames.sweep[row]), columns=_COLUMNS, dtype="float32")


def read_labels(index: FrameIndex, row: int, _: Sweep) -> UInt[np.ndarray, "labels"]:
    """Returns the lidarseg ids of a keyframe, 0 to 31."""
    return read_raw_labels(index.root / str(index.frames.labels[row]), "u1")


def evaluation_set(index: FrameIndex, row: int) -> str:
    """Returns the devkit's name of a keyframe's evaluation set: its official split, or that of the mini version."""
    if index.version.endswith("mini"):
        mini = _official_splits("mini_train", "mini_val").get(str(index.frames.scene[row]))
        return mini or str(index.frames.split[row])
    return str(index.frames.split[row])


def sweep_token(index: FrameIndex, row: int) -> str:
    """Returns the token of a keyframe's sweep: from the name of its label file, else from the table ``sample_data``.

    Raises:
        DataError: the table is damaged, or does not name the sweep.
    """
    labels, sweep = Path(str(index.frames.labels[row])).name, str(index.frames.sweep[row])
    if labels.endswith(LABEL_SUFFIX):
        return labels.removesuffix(LABEL_SUFFIX)
    table = index.root / index.version / "sample_data.json"
    try:
        return _keyframe_tokens(table)[sweep]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"The keyframe {index.frames.key[row]} has no label file, and {table} no row of its sweep {sweep}, so its"
            f" token is not known ({error!r}); unpack the metadata of one version again"
        ) from error


@cache
def _keyframe_tokens(table: Path) -> dict[str, str]:
    """Token of the sample_data row of each keyframe's file."""
    rows = stream_rows(table)
    return {PurePosixPath(row["filename"]).as_posix(): str(row["token"]) for row in rows if row["is_key_frame"]}


def _frame_table(
    tables: KeyframeTables, samples: Sequence[Record], labels: dict[str, str], safe: Callable[[str, str], str]
) -> FrameTable:
    scenes = [tables.scenes[sample["scene_token"]] for sample in samples]
    split_of = _official_splits("train", "val", "test")
    strangers = sorted({str(scene["name"]) for scene in scenes} - split_of.keys())
    if strangers:
        raise DataError(
            f"{len(strangers)} scenes are in no official nuScenes split: {', '.join(strangers[:5])};"
            " the scenes of a data root must bear official names (scene-0001 to scene-1110)"
        )
    lidar = [_record(tables, sample, _LIDAR) for sample in samples]
    paths = [labels.get(record["token"], "") for record in lidar]
    split = [split_of[scene["name"]] for scene in scenes]
    unlabelled = [
        s["token"] for s, part, path in zip(samples, split, paths, strict=True) if not path and part != "test"
    ]
    if unlabelled:
        raise DataError(
            f"lidarseg.json names no label file for {len(unlabelled)} of {len(samples)} keyframes, {unlabelled[0]}"
            " among them, which are of train and val scenes; unpack the nuScenes-lidarseg of this version again."
            f" {_ALLOW}"
        )
    return FrameTable(
        key=np.array([sample["token"] for sample in samples], str),
        scene=np.array([scene["name"] for scene in scenes], str),
        location=np.array([tables.logs[scene["log_token"]]["location"] for scene in scenes], str),
        description=np.array([scene["description"] for scene in scenes], str),
        split=np.array(split, str),
        sweep=np.array([safe(record["filename"], "sample_data") for record in lidar], str),
        labels=np.array([safe(path, "lidarseg") if path else "" for path in paths], str),
    )


@cache
def _official_splits(*names: str) -> dict[str, str]:
    from nuscenes.utils.splits import create_splits_scenes

    splits = create_splits_scenes()
    return {scene: split for split in names for scene in splits[split]}


def _record(tables: KeyframeTables, sample: Record, channel: str) -> Record:
    """Returns the sensor record of a keyframe."""
    records = tables.records[sample["token"]]
    record = records.get(channel)
    if record is None:
        present = ", ".join(sorted(records)) or "none"
        other = "choose other cameras (--cameras)" if channel != _LIDAR else f"call its channel {_LIDAR} in sensor.json"
        raise DataError(
            f"Keyframe {sample['token']} has no record of {channel} in sample_data.json; it has: {present}."
            f" Unpack the metadata again, or {other}. {_ALLOW}"
        )
    return record


def _incomplete(
    tables: KeyframeTables, samples: Sequence[Record], cameras: Sequence[str], labels: Collection[str]
) -> dict[str, str]:
    """The keyframes that lack a record, or labels that their split should have, with the reason."""
    tested, found = _official_splits("test"), dict[str, str]()
    for sample in samples:
        records, scene = tables.records[sample["token"]], tables.scenes[sample["scene_token"]]["name"]
        absent = [channel for channel in (_LIDAR, *cameras) if records.get(channel) is None]
        if absent:
            found[sample["token"]] = f"sample_data.json has no record of its {', '.join(absent)}"
        elif scene not in tested and _record(tables, sample, _LIDAR)["token"] not in labels:
            found[sample["token"]] = "lidarseg.json names no label file"
    return found


def _image_row(
    tables: KeyframeTables,
    mounting: Callable[..., Float64[np.ndarray, "4 4"]],
    sample: Record,
    frame: int,
    camera: str,
    safe: Callable[[str, str], str],
) -> ImageRow:
    record = _record(tables, sample, camera)
    sensor = tables.sensors[record["calibrated_sensor_token"]]
    intrinsics = np.array(sensor["camera_intrinsic"], np.float64).reshape(3, 3)
    transform = _camera_from_lidar(tables, mounting, _record(tables, sample, _LIDAR), record)
    if record["width"] <= 0 or record["height"] <= 0:
        raise DataError(
            f"sample_data.json gives image {record['filename']} the size {record['width']}x{record['height']};"
            " unpack the metadata again"
        )
    path = safe(record["filename"], "sample_data")
    size = (int(record["width"]), int(record["height"]))
    calibrated = f"{camera} in keyframe {sample['token']}"
    check_calibration(calibrated, intrinsics, transform, size, "unpack the metadata again")
    return ImageRow(frame, record["token"], camera, path, size, intrinsics, transform)


def _camera_from_lidar(
    tables: KeyframeTables, mounting: Callable[..., Float64[np.ndarray, "4 4"]], lidar: Record, camera: Record
) -> Float64[np.ndarray, "4 4"]:
    """Returns the transform of sweep points to a camera's frame, from the two sensors' ``sample_data`` records.

    The car moves between the two timestamps, so the chain goes through the global frame: LiDAR, ego at the LiDAR's
    timestamp, global, ego at the camera's timestamp, camera. ``mounting`` is ``_transform`` of a sensor's token.
    """
    ego_from_lidar = mounting(lidar["calibrated_sensor_token"])
    global_from_ego = _transform(tables.poses[lidar["ego_pose_token"]])
    ego_from_global = _transform(tables.poses[camera["ego_pose_token"]], inverse=True)
    camera_from_ego = mounting(camera["calibrated_sensor_token"], inverse=True)
    with np.errstate(all="ignore"):
        return camera_from_ego @ ego_from_global @ global_from_ego @ ego_from_lidar


def _transform(record: Record, *, inverse: bool = False) -> Float64[np.ndarray, "4 4"]:
    """The 4x4 matrix of a pose record: frame outside from frame inside, or its inverse."""
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    with np.errstate(all="ignore"):  # the caller reports non-finite values with their image
        return transform_matrix(record["translation"], Quaternion(record["rotation"]), inverse=inverse)
