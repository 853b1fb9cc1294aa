"""Arguments that readers take: the data root, its version, its cameras, and whether parts of it may be missing."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ...errors import ConfigError, DataError, MissingDataError, nearest

__all__ = ["resolve_root", "choose_cameras", "read_parts", "name_some", "refuse_cameras", "refuse_version"]

Part = TypeVar("Part")
Result = TypeVar("Result")


def resolve_root(root: Path, *, dataset: str, holds: str, is_root: Callable[[Path], bool], download: str) -> Path:
    """Returns ``root`` as an absolute path if ``is_root`` accepts it; ``holds`` describes the content of a root.

    Raises:
        MissingDataError: it is not a root; the message names a root up to three levels above or two below.
    """
    root = root.absolute()
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise MissingDataError(f"The {dataset} root {root} {problem}; give the folder that holds {holds}: --root DIR")
    if is_root(root):
        return root
    below = _folders(root)
    deeper = [folder for parent in below for folder in _folders(parent)]
    near = next((folder for folder in (*root.parents[:3], *below, *deeper) if _is(is_root, folder)), None)
    if near is not None:
        level = "below" if near.is_relative_to(root) else "above"
        hint = f"one is {level} it: --root {json.dumps(str(near))}"
    else:
        found = name_some([entry.name for entry in sorted(root.iterdir())]) or "nothing"
        hint = f"it holds {found}. Get the data from {download}"
    raise MissingDataError(f"{root} is not a {dataset} root: a root holds {holds}; {hint}")


def _folders(folder: Path) -> list[Path]:
    """The folders in ``folder``; none if it is not readable."""
    with suppress(PermissionError):
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    return []


def _is(is_root: Callable[[Path], bool], folder: Path) -> bool:
    with suppress(PermissionError):
        return is_root(folder)
    return False


def refuse_version(dataset: str, version: str | None) -> None:
    """Rejects a version for a data set without versions.

    Raises:
        ConfigError: a version is given.
    """
    if version is not None:
        raise ConfigError(f"{dataset} has no versions, and --version is '{version}'; leave it out")


def choose_cameras(cameras: str | Sequence[str], present: Sequence[str]) -> tuple[str, ...]:
    """Returns camera names in the order of ``present``; "all" selects every one, "none" means LiDAR only.

    Raises:
        ConfigError: a name is not among ``present`` (the message has the nearest), or no name is given.
    """
    names = cameras.split(",") if isinstance(cameras, str) else cameras
    wanted = {name.strip() for name in names if name.strip()}
    if wanted == {"all"}:
        return tuple(present)
    if wanted == {"none"}:
        return ()
    unknown = sorted(wanted - set(present))
    if unknown:
        hint = nearest(unknown[0], [*present, "all", "none"])
        raise ConfigError(f"The data set has no camera '{unknown[0]}'; {hint} (option --cameras)")
    if not wanted:
        raise ConfigError(f"No camera is chosen; choose some of {', '.join(present)}, all or none (option --cameras)")
    return tuple(name for name in present if name in wanted)


def refuse_cameras(dataset: str, cameras: str | Sequence[str] | None) -> None:
    """Rejects cameras for a data set without images.

    Raises:
        ConfigError: cameras are given.
    """
    if cameras not in (None, "none", ["none"], ("none",)):
        raise ConfigError(f"{dataset} has no images, and --cameras is '{cameras}'; leave it out")


def read_parts(
    parts: Iterable[Part],
    read: Callable[[Part], Result],
    keys: Callable[[Part], Iterable[str]],
    *,
    allow_missing: bool,
) -> tuple[list[Result], dict[str, str]]:
    """Calls ``read`` on each part; returns the results, and key -> error of the frames of incomplete parts.

    Without ``allow_missing`` the mapping is empty. ``keys`` lists the keys of the frames of a part.

    Raises:
        MissingDataError, DataError: a part is incomplete, and that is not allowed.
    """
    found, left_out = list[Result](), dict[str, str]()
    each = list(parts)
    for part in each:
        try:
            found.append(read(part))
        except (DataError, MissingDataError) as error:
            if not allow_missing and len(each) > 1:
                raise type(error)(f"{error}. Or leave out what is incomplete: xd3d prepare --allow-missing") from error
            if not allow_missing:
                raise
            left_out |= dict.fromkeys(keys(part), str(error))
    return found, left_out


def name_some(names: list[str], limit: int = 5) -> str:
    """Returns the first names, and the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
