"""A data root before anything is read: is it the right folder, or one a level off?"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...errors import ConfigError, MissingDataError

__all__ = ["check_level", "name_some", "refuse_version"]


def check_level(root: Path, *, dataset: str, holds: str, is_root: Callable[[Path], bool], download: str) -> Path:
    """``root`` as an absolute path, once ``is_root`` says that it is one; ``holds`` says in words what it must hold.

    Raises:
        MissingDataError: it is not; the message names the right folder where one is up to three levels above or two
            below.
    """
    root = root.absolute()
    if not root.is_dir():
        what = "is a file" if root.exists() else "is not there"
        raise MissingDataError(f"The {dataset} root {root} {what}; give the folder that holds {holds}: --root DIR")
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
    """The folders in ``folder``, none where it may not be looked into."""
    with suppress(PermissionError):
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    return []


def _is(is_root: Callable[[Path], bool], folder: Path) -> bool:
    with suppress(PermissionError):
        return is_root(folder)
    return False


def refuse_version(dataset: str, version: str | None) -> None:
    """Refuse ``--version`` for a data set that has only one.

    Raises:
        ConfigError: a version was given.
    """
    if version is not None:
        raise ConfigError(f"{dataset} has no versions, and --version says '{version}'; leave it out")


def name_some(names: list[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
