"""Checks of a nuScenes data root: folder level, version, complete tables, safe paths."""

import os
from pathlib import Path, PurePosixPath

from ...errors import DataError, MissingDataError
from .catalogue import NUSCENES_32
from .nuscenes_tables import stream_rows
from .reader_arguments import resolve_root

__all__ = ["check_root", "check_tables", "find_version", "label_paths", "safe_path"]

#: Tables of the metadata archive; those of boxes and maps are not read.
_TABLES = (
    *("sensor", "calibrated_sensor", "ego_pose", "log", "scene", "sample", "sample_data", "category"),
    *("attribute", "visibility", "instance", "sample_annotation", "map"),
)

_DOWNLOAD = "https://www.nuscenes.org/nuscenes#download"


def check_root(root: Path) -> Path:
    """Returns ``root`` as an absolute path if it has version folders (``v1.0-*``).

    Raises:
        MissingDataError: it has none; the message names a root nearby if there is one.
    """
    return resolve_root(
        root,
        dataset="nuScenes",
        holds="a folder v1.0-* with tables, and samples",
        is_root=lambda folder: bool(_versions(folder)),
        download=f"{_DOWNLOAD}, or try: xd3d synthesize DIR",
    )


def find_version(root: Path, given: str | None) -> str:
    """Returns the version to read: the one ``given``, else ``v1.0-trainval`` if it exists, else the only one.

    Raises:
        MissingDataError: the given version does not exist, or none is given and several exist.
    """
    found = _versions(root)
    if given is not None:
        if given not in found:
            raise MissingDataError(
                f"The nuScenes root {root} has no version '{given}'; it has: {', '.join(found)}."
                " Choose one: --version NAME"
            )
        return given
    if "v1.0-trainval" in found:
        return "v1.0-trainval"
    if len(found) > 1:
        raise MissingDataError(
            f"The nuScenes root {root} has several versions: {', '.join(found)}. Choose one: --version NAME"
        )
    return found[0]


def check_tables(root: Path, version: str) -> None:
    """Checks that every table of the metadata archive exists, including unread ones.

    Raises:
        MissingDataError: tables are missing; the message names them.
    """
    tables = root / version
    expected = sorted(_TABLES)
    missing = [f"{name}.json" for name in expected if not (tables / f"{name}.json").is_file()]
    if missing:
        raise MissingDataError(
            f"{tables} lacks {len(missing)} of {len(expected)} tables: {', '.join(missing)};"
            f" unpack the metadata archive of this version again ({_DOWNLOAD})"
        )


def label_paths(root: Path, version: str) -> dict[str, str]:
    """Returns the label file (relative to the root) of each labelled sweep, by sample_data token.

    The test version has no labels, and needs no table of them.

    Raises:
        MissingDataError: the lidarseg table of another version is missing.
        DataError: the table is damaged, or ``category.json`` is not that of nuScenes-lidarseg.
    """
    path = root / version / "lidarseg.json"
    if not path.is_file():
        if version.endswith("test"):
            return {}
        raise MissingDataError(
            f"The table {path} is missing: unpack 'nuScenes-lidarseg' for {version} into {root} ({_DOWNLOAD});"
            " it brings lidarseg.json, a new category.json and the label files"
        )
    try:
        labels = {str(row["sample_data_token"]): str(PurePosixPath(row["filename"])) for row in stream_rows(path)}
        names = {row.get("index"): row["name"] for row in stream_rows(root / version / "category.json")}
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} or category.json beside it is damaged ({error!r}); unpack nuScenes-lidarseg again"
        ) from error
    if labels and names != dict(enumerate(NUSCENES_32)):
        raise DataError(
            f"{root / version / 'category.json'} does not list the 32 classes of nuScenes-lidarseg with their index;"
            " unpack nuScenes-lidarseg last: its category.json replaces the older one"
        )
    return labels


def safe_path(root: Path, relative: str, table: str, *, follow_links: bool = False) -> str:
    """Returns the path ``relative`` of a table if it stays inside the root.

    The top folders of the root (``samples``, ``lidarseg``) may be links to another disk; paths below must stay in them,
    unless ``follow_links`` allows links that lead anywhere.

    Raises:
        DataError: the path is empty, absolute or invalid, has "..", or is a link that leads out of the root.
    """
    path = PurePosixPath(relative)
    problem = ""
    if not path.parts:
        problem = "is empty"
    elif path.is_absolute() or ".." in path.parts or "\\" in relative or ":" in path.parts[0]:
        problem = "leads out of the root"
    else:
        try:
            end, top = (os.path.realpath(root / part) for part in (path, path.parts[0]))
        except ValueError as error:  # a null character, or half a surrogate pair
            end, top, problem = "", "", f"is invalid ({error})"
        if not (follow_links or Path(end).is_relative_to(top)):
            raise DataError(
                f"{root / path} is a link that leads out of the root, to {end}; if the links are meant, allow them:"
                " xd3d prepare --follow-links"
            )
    if problem:
        raise DataError(f"The path {relative!r} in {table}.json {problem}; unpack the official metadata again")
    return str(path)


def _versions(folder: Path) -> list[str]:
    """The versions in ``folder``; its folder of labels has folders of these names too."""
    labels = folder.name in ("lidarseg", "panoptic")
    return [] if labels else sorted(path.name for path in folder.glob("v1.0-*") if path.is_dir())
