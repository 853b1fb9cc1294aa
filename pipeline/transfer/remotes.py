"""Remotes to which files are pushed and from which they are pulled: a folder, S3, the Hugging Face Hub, or a URL."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ...cache.layout import STAGING
from ...cache.stores import Store, open_store
from ...cache.stores.local import LocalStore
from ...cache.writer import write_files
from ...errors import ConfigError, StoreError, Xd3dError
from ...files import unique_name

__all__ = ["FsspecRemote", "Remote", "StoreRemote", "open_remote"]


@runtime_checkable
class Remote(Protocol):
    """Files under one location; names are relative paths with ``/``. Threads may read at once."""

    most_files: int | None  #: how many files it should hold at most

    def describe(self, name: str = "") -> str:
        """Returns the full name of a file, or of the remote, for messages."""

    def files(self) -> dict[str, int]:
        """Returns the size of every file by name; empty if the remote does not exist.

        Raises:
            StoreError: it cannot be reached or read.
        """

    def read(self, name: str, size: int) -> bytes:
        """Returns the content of a file of ``size`` bytes; at most one byte more of a longer one is read.

        Raises:
            StoreError, CacheError: it is missing or cannot be read.
        """

    def write(self, files: Mapping[str, bytes]) -> None:
        """Writes files, each atomically where the remote can; ``finish`` makes all of them visible.

        Raises:
            StoreError, CacheError, DiskSpaceError: the remote refuses.
        """

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files, after what was written before is visible."""

    def finish(self) -> None:
        """Makes everything written visible and removes temporary files."""


def open_remote(location: str, *, kind: str, writing: bool, public: bool = False, dry_run: bool = False) -> Remote:
    """Opens a remote for a ``kind`` of content, "cache" or "run".

    ``location``: a folder, ``s3://bucket/prefix``, ``hf://datasets/owner/name[/folder]`` (caches),
    ``hf://owner/name[/folder]`` (runs), or a URL that fsspec knows. ``public``: whether a repository that the hub does
    not have yet is created public. ``dry_run``: none is created, and none is needed.

    Raises:
        ConfigError: the location is malformed, or not one for this kind.
        StoreError: it cannot be reached.
    """
    scheme = location.partition("://")[0] if "://" in location else ""
    if scheme == "hf":
        from .hub import HubRemote, parse_hub

        return HubRemote(parse_hub(location, kind), writing=writing, public=public, dry_run=dry_run)
    if scheme == "s3":
        return StoreRemote(open_store(location.rstrip("/")))
    if scheme in ("", "file"):
        return StoreRemote(open_store(Path(location.removeprefix("file://")).expanduser().absolute()))
    return FsspecRemote(location.rstrip("/"))


class StoreRemote:
    """A folder or S3, through the stores of caches."""

    most_files: int | None = None

    def __init__(self, store: Store) -> None:
        self.store = store
        self._owner = unique_name()

    def describe(self, name: str = "") -> str:
        """Returns the path or URL of a file."""
        return self.store.describe(name)

    def files(self) -> dict[str, int]:
        """Returns the size of every file."""
        return {name: size for name, size in self.store.files() if not name.startswith(f"{STAGING}/")}

    def read(self, name: str, size: int) -> bytes:
        """Returns the content of a regular file."""
        file = self.store.open(name)
        content = np.empty(min(file.size, size + 1), np.uint8)
        file.read_into(content, 0)
        return content.tobytes()

    def write(self, files: Mapping[str, bytes]) -> None:
        """Writes each file through a temporary one, never through a link."""
        with self.store.translate_errors("writing files"):
            self.store.prepare({name.partition("/")[0] for name in files})
            groups = [files] if self.store.parallel == 1 else [{name: content} for name, content in files.items()]
            for _ in self.store.map(lambda group: write_files(self.store, group, self._owner), groups):
                pass

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files."""
        with self.store.translate_errors("deleting files"):
            for name in names:
                self.store.delete(name)

    def finish(self) -> None:
        """Removes temporary files, also those of a killed process."""
        if isinstance(self.store, LocalStore):
            self.store.remove(STAGING)


class FsspecRemote:
    """A URL that fsspec opens, such as ``gs://bucket/folder``.

    Raises:
        ConfigError: fsspec does not know the scheme, or its package is not installed.
    """

    most_files: int | None = None

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"{url} cannot be opened ({error}); give a folder, s3://bucket/folder, hf://..., or install the package"
                " of fsspec for this scheme"
            ) from error
        self._url = url

    def describe(self, name: str = "") -> str:
        """Returns the URL of a file."""
        return f"{self._url}/{name}" if name else self._url

    def files(self) -> dict[str, int]:
        """Returns the size of every file."""
        with self._asking():
            self._fs.invalidate_cache()
            found: dict[str, Any] = self._fs.find(self._root, detail=True)
        return {path[len(self._root) :].lstrip("/"): int(facts["size"] or 0) for path, facts in found.items()}

    def read(self, name: str, size: int) -> bytes:
        """Returns the content of a file."""
        with self._asking():
            return bytes(self._fs.cat_file(self._path(name), end=size + 1))

    def write(self, files: Mapping[str, bytes]) -> None:
        """Writes files."""
        with self._asking():
            for folder in sorted({self._path(name).rpartition("/")[0] for name in files}):
                self._fs.makedirs(folder, exist_ok=True)
            self._fs.pipe({self._path(name): content for name, content in files.items()})

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files."""
        with self._asking():
            for name in names:
                self._fs.rm_file(self._path(name))

    def finish(self) -> None:
        """Does nothing: written files are visible."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turns the errors of any library behind fsspec into a ``StoreError``."""
        try:
            yield
        except Xd3dError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise StoreError(
                f"{self._url} cannot be used ({reason}); check the address and your access to it"
            ) from error
