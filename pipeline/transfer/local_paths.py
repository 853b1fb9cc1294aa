"""Removes local paths from shared files, and refuses files that still contain one."""

import getpass
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import ConfigError
from ..workspace import Workspace

__all__ = ["Machine"]

#: An absolute path of two parts or more within a sentence.
_PATH = re.compile(r"(?<![\w.:/~@-])(?:~|/)(?:[^\s/'\",;:()]+/)+([^\s/'\",;:()]*)")
_TEXTS = frozenset({".json", ".jsonl", ".md"})


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Folders of this machine that shared files must not name."""

    folders: Sequence[str]  #: the longest first

    @classmethod
    def current(cls, workspace: Workspace) -> "Machine":
        """The data roots, the workspace, the working folder and the user's home."""
        named = [*workspace.roots().values(), str(workspace.home), str(Path.cwd()), str(Path.home())]
        with suppress(OSError, KeyError):
            named.append(f"/{getpass.getuser()}")
        folders = {folder.rstrip("/") for folder in named}
        return cls(folders=sorted((folder for folder in folders if len(folder) > 1), key=len, reverse=True))

    def without_paths(self, value: Any) -> Any:
        """Returns JSON ``value`` with every path cut to its last part."""
        if isinstance(value, dict):
            return {key: self.without_paths(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.without_paths(each) for each in value]
        if isinstance(value, str):
            whole = value.startswith(("/", "~/", "file://"))
            return PurePosixPath(value).name if whole else self.text_without_paths(value)
        return value

    def text_without_paths(self, text: str) -> str:
        """Returns a sentence with the paths in it cut to their last part."""
        for folder in self.folders:
            text = text.replace(f"{folder}/", "")
        return _PATH.sub(r"\1", text)

    def require_no_paths(self, name: str, content: bytes) -> None:
        """Checks that the text file ``name`` shows none of the folders.

        Raises:
            ConfigError: it does; the message names the file and the folder.
        """
        if PurePosixPath(name).suffix not in _TEXTS:
            return
        text = content.decode(errors="replace")
        shown = next((each for each in self.folders if _shows(text, each)), None)
        if shown:
            raise ConfigError(
                f"{name} names a folder of this machine, {shown}, and would show it to whoever pulls; it was not"
                " pushed. Make it again with relative paths"
            )


def _shows(text: str, folder: str) -> bool:
    """Whether ``text`` has the path of ``folder``, as it is or as JSON escapes it (umlauts, backslashes)."""
    forms = {folder, json.dumps(folder)[1:-1]}
    return any(re.search(rf"{re.escape(form)}(?![\w.-])", text) for form in forms)
