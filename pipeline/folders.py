"""Output folders that a command can resume: a file in the folder records what it is for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..files import read_json, write_json

__all__ = ["claim_folder"]

#: Facts that folders of earlier versions lack, and what they mean.
EARLIER = {"adapt": "none"}


def claim_folder(
    path: Path, facts: Mapping[str, Any], identity: Sequence[str], *, what: str, files: Sequence[str], option: str
) -> None:
    """Writes ``facts`` to ``path`` in an output folder, or checks that the folder was started with the same facts.

    ``what`` names the content in messages; ``identity``: the facts that must be equal; ``files``: patterns of the files
    that will be written; ``option``: the option that chooses another folder.

    Raises:
        ConfigError: the folder was started with other facts, or holds such files already.
        DataError: its facts are damaged.
    """
    folder = path.parent
    remedy = f"choose another folder with {option}, or move {path.name} and {', '.join(files)} away"
    try:
        stored = {**EARLIER, **read_json(path)}
        other = [key for key in identity if stored[key] != facts[key]]
    except FileNotFoundError:
        if there := next((found for pattern in files for found in folder.glob(pattern)), None):
            raise ConfigError(f"{there} exists already and would be replaced; {remedy}") from None
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(facts))
        return
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged, or of another program ({error!r}); {remedy}") from error
    if other:
        listed = "; ".join(f"{key}: {stored[key]} there, {facts[key]} now" for key in other if key != "classes")
        raise ConfigError(f"{folder} holds {what} ({listed or 'other classes'}); {remedy}")
