"""The workspace: the folder of indexes, caches and runs, and what commands remember for later commands."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, MissingDataError
from ..files import read_json, write_json

__all__ = ["Workspace", "absolute_path"]

log = logging.getLogger(__name__)

#: What ``workspace.json`` may hold.
_REMEMBERED = {"roots": dict, "last_run": str, "pseudo_labels": str}


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A folder with ``index/``, ``cache/``, ``runs/``, ``pseudo-labels/`` and ``workspace.json``.

    The last remembers data roots, the last run and the last pseudo labels.
    """

    home: Path

    @classmethod
    def current(cls) -> "Workspace":
        """The workspace that ``XD3D_HOME`` names, else ``./xd3d-work``."""
        return cls(home=Path(os.environ.get("XD3D_HOME") or "xd3d-work").absolute())

    @classmethod
    def of(cls, given: "Workspace | Path | str | None") -> "Workspace":
        """The workspace ``given``, or in the folder ``given``; by default the current one."""
        if isinstance(given, Workspace):
            return given
        return cls.current() if given is None else cls(home=Path(given).absolute())

    def require_writable(self) -> None:
        """Creates the folder if it does not exist.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.home, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            raise ConfigError(f"The workspace {self.home} cannot be written; choose another: XD3D_HOME=DIR xd3d ...")

    def index(self, dataset: str) -> Path:
        """Folder of the index of ``dataset``."""
        return self.home / "index" / dataset

    def cache_root(self, configured: str | None = None) -> Path | str:
        """Returns the folder or URL of the caches: ``XD3D_CACHES``, the configured one, or ``cache/``."""
        chosen = os.environ.get("XD3D_CACHES") or configured or str(self.home / "cache")
        return chosen.rstrip("/") if "://" in chosen else Path(chosen).absolute()

    def caches(self, dataset: str, configured: str | None = None) -> list[Path | str]:
        """Returns all feature caches of ``dataset``, newest first; in an object store, sorted by name."""
        root = self.cache_root(configured)
        if isinstance(root, str):
            from ..cache.stores import open_store

            names = sorted(open_store(root).listing(""))
            return [f"{root}/{name}" for name in names if name.startswith(f"{dataset}-")]
        found = [path for path in root.glob(f"{dataset}-*") if path.is_dir()]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        return list(found)

    def cache(self, dataset: str, digest: str, configured: str | None = None) -> Path | str:
        """Returns the location of the feature cache of ``dataset`` with the fingerprint ``digest``."""
        root, name = self.cache_root(configured), f"{dataset}-{digest[:12]}"
        return root / name if isinstance(root, Path) else f"{root}/{name}"

    def find_cache(self, cache: str) -> str:
        """Returns the location of ``cache``: a plain name is a cache of this workspace, anything else a path or URL."""
        if "://" in cache:
            return cache
        root = self.cache_root()
        if isinstance(root, str):
            return f"{root}/{cache}" if Path(cache).parts == (cache,) and not Path(cache).is_dir() else cache
        return str(_named(Path(cache), root))

    def run(self, name: str) -> Path:
        """Folder of the run called ``name``."""
        return self.home / "runs" / name

    def find_run(self, run: Path) -> Path:
        """Returns the folder of ``run``: a plain name is a run of this workspace, anything else a path."""
        return _named(run, self.home / "runs")

    def name_of(self, run: Path) -> str:
        """Returns the name by which ``find_run`` finds the folder ``run``, or else its path."""
        return run.name if self.find_run(Path(run.name)) == run else str(run)

    def pseudo_labels(self, name: str) -> Path:
        """Folder of the pseudo labels called ``name``."""
        return self.home / "pseudo-labels" / name

    def find_pseudo_labels(self, given: str | None) -> Path:
        """Returns the folder of pseudo labels, given by name or path; by default those that were made last.

        Raises:
            MissingDataError: this workspace has none.
            DataError: ``workspace.json`` is damaged.
        """
        name = given or self._memory().get("pseudo_labels")
        if not name:
            raise MissingDataError(
                f"There are no pseudo labels in {self.home}; make some with: xd3d pseudo-label (after xd3d train)"
            )
        return _named(Path(name), self.home / "pseudo-labels")

    def remember_pseudo_labels(self, folder: Path) -> None:
        """Makes ``folder`` the default of training.

        Raises:
            DataError: ``workspace.json`` is damaged.
        """
        with self._changing_memory() as memory:
            memory["pseudo_labels"] = folder.name

    def root(self, dataset: str, given: Path | None = None, *, configured: Path | None = None) -> Path:
        """Returns the root of ``dataset``: ``given``, ``XD3D_<DATASET>_ROOT``, ``configured`` or the remembered one.

        Raises:
            MissingDataError: none is known; the message says how to give one.
            DataError: ``workspace.json`` is damaged.
        """
        variable = f"XD3D_{dataset.upper()}_ROOT"
        remembered = self._memory().get("roots", {}).get(dataset)
        chosen = given or os.environ.get(variable) or configured or remembered
        if not chosen:
            raise MissingDataError(
                f"No data root is known for {dataset}. Give it once with 'xd3d prepare --dataset {dataset} --root DIR'"
                f" (or set {variable}, or data.roots.{dataset} in a config);"
                " for a synthetic one to try: xd3d synthesize DIR"
            )
        return Path(chosen).absolute()

    def roots(self) -> dict[str, str]:
        """Returns the remembered data roots by data set.

        Raises:
            DataError: ``workspace.json`` is damaged.
        """
        return dict(self._memory().get("roots", {}))

    def remember_root(self, dataset: str, root: Path) -> None:
        """Remembers ``root`` for later commands; logs a warning if that of another root is forgotten.

        Raises:
            DataError: ``workspace.json`` is damaged.
        """
        with self._changing_memory() as memory:
            known = memory.setdefault("roots", {}).get(dataset)
            memory["roots"][dataset] = str(root)
        if known is not None and Path(known).resolve() != root.resolve():
            log.warning(
                "The index of %s in %s is now that of %s, and no longer that of %s; to keep both, prepare one in"
                " another workspace: XD3D_HOME=DIR xd3d prepare ...",
                *(dataset, self.home, root, known),
            )

    def last_run(self) -> Path:
        """Returns the folder of the run that was trained last.

        Raises:
            MissingDataError: nothing has been trained in this workspace.
            DataError: ``workspace.json`` is damaged.
        """
        name = self._memory().get("last_run")
        if not name or not self.run(name).is_dir():
            there = sorted(path.parent.name for path in (self.home / "runs").glob("*/run.json"))
            found = f" (there are {', '.join(there)})" if there else ""
            raise MissingDataError(
                f"There is no last run in {self.home}; train one with: xd3d train --cached (or name one: --run"
                f" DIR{found})"
            )
        return self.run(name)

    def remember_run(self, run: Path) -> None:
        """Makes ``run`` the default of ``evaluate`` and ``report``.

        Raises:
            DataError: ``workspace.json`` is damaged.
        """
        with self._changing_memory() as memory:
            runs = self.home / "runs"
            memory["last_run"] = str(run.relative_to(runs) if run.is_relative_to(runs) else run)

    def _memory(self) -> dict[str, Any]:
        path = self.home / "workspace.json"
        try:
            memory = read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValueError as error:
            raise DataError(
                f"{path} is not valid JSON ({error}); repair or delete it (it only remembers roots and the last run)"
            ) from error
        if not isinstance(memory, dict) or not all(
            isinstance(memory.get(key, kind()), kind) for key, kind in _REMEMBERED.items()
        ):
            raise DataError(
                f"{path} does not hold what it should; delete it (it only remembers roots and the last run)"
            )
        return memory

    @contextmanager
    def _changing_memory(self) -> Iterator[dict[str, Any]]:
        """Yields what is remembered and writes it back; a lock serialises commands that end at the same time."""
        from ..locks import exclusive_lock

        with exclusive_lock(self.home, work="writes", wait=True):
            memory = self._memory()
            yield memory
            write_json(self.home / "workspace.json", memory)


def _named(given: Path, folder: Path) -> Path:
    """Resolves a plain name as an entry of ``folder``, unless the working directory has such a folder."""
    return folder / given if given.parts == (given.name,) and not given.is_dir() else absolute_path(given)


def absolute_path(given: Path) -> Path:
    """Returns ``given`` as an absolute path without ``..``; links are followed only if it has some."""
    return given.resolve() if ".." in given.parts else given.absolute()
