"""A nuScenes data root before its tables are read: the right level, the version, complete tables, safe paths."""

import json
from pathlib import Path, PurePosixPath

from ...errors import DataError, MissingDataError
from ...files import read_json
from .raw_classes import NUSCENES_32

__all__ = ["check_root", "check_tables", "find_version", "label_paths", "safe_path"]

#: Tables of the metadata archive; those of boxes and maps are not read.
_TABLES = (
    *("sensor", "calibrated_sensor", "ego_pose", "log", "scene", "sample", "sample_data", "category"),
    *("attribute", "visibility", "instance", "sample_annotation", "map"),
)

_DOWNLOAD = "https://www.nuscenes.org/nuscenes#download"


def check_root(root: Path) -> Path:
    """``root`` as an absolute path, once it is a folder with version folders (``v1.0-*``) in it.

    Raises:
        MissingDataError: it is not; the message says so, and names the right folder where one is near.
    """
    root = root.absolute()
    if not root.is_dir():
        what = "is a file" if root.exists() else "is not there"
        raise MissingDataError(
            f"The nuScenes root {root} {what}; give the folder that holds v1.0-* and samples: --root DIR"
        )
    if _versions(root):
        return root
    near = [folder for folder in (root.parent, *sorted(root.iterdir())) if folder.is_dir() and _versions(folder)]
    if near:
        level = "above" if near[0] == root.parent else "below"
        hint = f"that one is a level {level}: --root {json.dumps(str(near[0]))}"
    else:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
        hint = f"it holds {found}. Unpack a metadata archive there ({_DOWNLOAD}), or try: xd3d synthesize DIR"
    raise MissingDataError(f"{root} is not a nuScenes root: a root holds a folder v1.0-* with tables; {hint}")


def find_version(root: Path, given: str | None) -> str:
    """The version to read: the one ``given``, else ``v1.0-trainval`` if it is there, else the only one.

    Raises:
        MissingDataError: the one given is not there, or several are there and none was given.
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
    """Make sure that every table of the metadata archive is there, those that are not read among them.

    Raises:
        MissingDataError: some are not; the message names them.
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
    """Label file (relative to the root) of each labelled sweep, by sample_data token.

    Raises:
        MissingDataError: the lidarseg table is missing.
        DataError: the table is damaged, or ``category.json`` is not the one of nuScenes-lidarseg.
    """
    path = root / version / "lidarseg.json"
    if not path.is_file():
        raise MissingDataError(
            f"The table {path} is missing: unpack 'nuScenes-lidarseg' for {version} into {root} ({_DOWNLOAD});"
            " it brings lidarseg.json, a new category.json and the label files"
        )
    try:
        rows = read_json(path)
        labels = {str(row["sample_data_token"]): str(row["filename"]) for row in rows}
        categories = read_json(root / version / "category.json")
        names = {row.get("index"): row["name"] for row in categories}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} or category.json beside it is damaged ({error!r}); unpack nuScenes-lidarseg again"
        ) from error
    if names != dict(enumerate(NUSCENES_32)):
        raise DataError(
            f"{root / version / 'category.json'} does not list the 32 classes of nuScenes-lidarseg with their index;"
            " unpack nuScenes-lidarseg last: its category.json replaces the older one"
        )
    return labels


def safe_path(root: Path, relative: str, table: str) -> str:
    """``relative`` as a table gives it, once it is known to stay inside the root.

    The folders at the top of the root (``samples``, ``lidarseg``) may be links to another disk; nothing below them may
    lead out of them.

    Raises:
        DataError: the path is empty, absolute, goes up, or is a link that leads out.
    """
    path = PurePosixPath(relative)
    problem = ""
    if not path.parts:
        problem = "is empty"
    elif path.is_absolute() or ".." in path.parts or "\\" in relative or ":" in path.parts[0]:
        problem = "leads out of the root"
    elif not (root / path).resolve().is_relative_to((root / path.parts[0]).resolve()):
        problem = "is a link that leads out of the root"
    if problem:
        raise DataError(f"The path {relative!r} in {table}.json {problem}; unpack the official metadata again")
    return str(path)


def _versions(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("v1.0-*") if path.is_dir())
