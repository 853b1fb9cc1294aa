"""Folders that a command fills piece by piece: each says what it is for, and takes nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..files import read_json, write_json

__all__ = ["claim_folder"]


def claim_folder(path: Path, facts: Mapping[str, Any], identity: Sequence[str], *, what: str, option: str) -> None:
    """Write ``facts`` to ``path`` in a folder that is to hold ``what``, or make sure that it was begun for the same.

    ``identity``: the facts that must be equal; ``option``: the one that chooses another folder.

    Raises:
        ConfigError: the folder was begun for something else.
        DataError: its facts are damaged.
    """
    try:
        stored = read_json(path)
        other = [key for key in identity if stored[key] != facts[key]]
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(facts))
        return
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}); delete {path.parent}, or choose another folder with {option}"
        ) from error
    if other:
        listed = "; ".join(f"{key}: {stored[key]} there, {facts[key]} now" for key in other if key != "classes")
        raise ConfigError(
            f"{path.parent} holds {what} ({listed or 'other classes'});"
            f" choose another folder with {option}, or delete this one"
        )
