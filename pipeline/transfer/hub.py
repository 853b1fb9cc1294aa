"""The Hugging Face Hub as a remote: large files are sent first and cost no commit; commits then name many at once.

A repository may take about a hundred commits an hour, so a commit waits for ``COMMIT_FILES`` files or ``COMMIT_BYTES``.
A killed push loses nothing: the hub keeps what was sent, and its client asks for that before it sends a file again.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    constants,
    get_token,
    set_client_factory,
)
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import _http
from huggingface_hub.utils.tqdm import disable_progress_bars

from ...errors import ConfigError, StoreError, Xd3dError

__all__ = ["HubFolder", "HubRemote", "parse_hub"]

ANSWER_SECONDS = 10.0  #: how long the hub may take to say what a repository is
TRANSFER_SECONDS = 120.0  #: how long it may be silent in any other request
COMMIT_FILES = 500
COMMIT_BYTES = 5_000_000_000
_KINDS = {"cache": "dataset", "run": "model"}
_EXAMPLES = {"cache": "hf://datasets/owner/name[/folder]", "run": "hf://owner/name[/folder]"}
_URL = re.compile(r"hf://(datasets/)?([\w.-]+/[\w.-]+)((?:/[\w.:@+-]+)*)/?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class HubFolder:
    """A folder of a repository on the hub: its id, its type ("dataset", "model"), and the folder, "" for the whole."""

    repo: str
    type: str
    folder: str

    @property
    def url(self) -> str:
        """The location as it is given to commands."""
        prefix = "datasets/" if self.type == "dataset" else ""
        return f"hf://{prefix}{self.repo}" + (f"/{self.folder}" if self.folder else "")


def parse_hub(location: str, kind: str) -> HubFolder:
    """Parses a location on the hub for a ``kind`` of content, "cache" or "run".

    Raises:
        ConfigError: it is malformed, or a repository of the other kind.
    """
    match = _URL.fullmatch(location)
    if not match or ".." in location or bool(match[1]) != (kind == "cache"):
        raise ConfigError(f"{location} is no place for a {kind}; write {_EXAMPLES[kind]}")
    return HubFolder(repo=match[2], type=_KINDS[kind], folder=match[3].strip("/"))


class HubRemote:
    """A folder of a repository; reads see the revision that was the newest when the remote was opened.

    With ``writing`` a repository that does not exist is created, in a ``dry_run`` it counts as empty.

    Raises:
        StoreError: the hub does not answer or refuses, there is no such repository, or writing needs a token.
    """

    most_files: int | None = 100_000  #: what the hub recommends for a repository

    def __init__(self, folder: HubFolder, *, writing: bool, public: bool, dry_run: bool = False) -> None:
        self._at = folder
        _limit_waiting()
        disable_progress_bars()
        if constants.HF_HUB_OFFLINE:
            raise StoreError(f"{folder.url} cannot be reached: HF_HUB_OFFLINE is set; unset it")
        if writing and not dry_run and not get_token():
            raise StoreError(f"Pushing to {folder.url} needs a token of the hub: hf auth login, or HF_TOKEN=...")
        self._api = HfApi()
        self._reader = HfFileSystem(endpoint=self._api.endpoint, skip_instance_cache=True)
        self._operations: list[Any] = []
        self._bytes = 0
        self._revision: str | None = None
        with self._asking():
            try:
                facts = self._api.repo_info(folder.repo, repo_type=folder.type, timeout=ANSWER_SECONDS)
                self._revision = facts.sha
            except RepositoryNotFoundError:
                if not writing:
                    raise
                if not dry_run:
                    self._api.create_repo(folder.repo, repo_type=folder.type, private=not public, exist_ok=True)

    def describe(self, name: str = "") -> str:
        """Returns the location of a file."""
        return f"{self._at.url}/{name}" if name else self._at.url

    def files(self) -> dict[str, int]:
        """Returns the size of every file."""
        prefix = self._path("")
        with self._asking():
            try:
                tree = self._api.list_repo_tree(
                    self._at.repo,
                    self._at.folder or None,
                    recursive=True,
                    repo_type=self._at.type,
                    revision=self._revision,
                )
                return {entry.path.removeprefix(prefix): entry.size for entry in tree if isinstance(entry, RepoFile)}
            except (EntryNotFoundError, RepositoryNotFoundError):  # a dry run before the first push has no repository
                return {}

    def read(self, name: str, size: int) -> bytes:
        """Returns the content of a file; a connection that breaks is opened again once, where it broke."""
        prefix = "datasets/" if self._at.type == "dataset" else ""
        with self._asking():
            path = f"{prefix}{self._at.repo}/{self._path(name)}"
            with self._reader.open(path, "rb", revision=self._revision, block_size=0) as file:
                return bytes(file.read(size + 1))

    def write(self, files: Mapping[str, bytes]) -> None:
        """Sends large files, and commits them with the small ones when enough have come together."""
        with self._asking():
            added = [
                CommitOperationAdd(path_in_repo=self._path(name), path_or_fileobj=content)
                for name, content in files.items()
            ]
            self._api.preupload_lfs_files(self._at.repo, added, repo_type=self._at.type)
        self._operations += added
        self._bytes += sum(map(len, files.values()))
        if len(self._operations) >= COMMIT_FILES or self._bytes >= COMMIT_BYTES:
            self.finish()

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files, in one commit with what was written before."""
        self._operations += [CommitOperationDelete(path_in_repo=self._path(name)) for name in names]
        self.finish()

    def finish(self) -> None:
        """Commits what was written."""
        if not self._operations:
            return
        with self._asking():
            done = self._api.create_commit(
                self._at.repo, self._operations, commit_message="xd3d push", repo_type=self._at.type
            )
        self._operations, self._bytes, self._revision = [], 0, done.oid

    def _path(self, name: str) -> str:
        return f"{self._at.folder}/{name}" if self._at.folder else name

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turns errors of the hub's client, which come from several libraries, into a ``StoreError`` with a remedy."""
        try:
            yield
        except Xd3dError:
            raise
        except Exception as error:
            raise StoreError(f"{self._at.url} cannot be used: {self._reason(error)}") from error

    def _reason(self, error: BaseException) -> str:
        chain = [error]
        while cause := chain[-1].__cause__:
            chain.append(cause)
        status = next((each.response.status_code for each in chain if hasattr(each, "response")), None)
        page = f"{self._api.endpoint}/{self._at.url.removeprefix('hf://')}"
        if any(isinstance(each, GatedRepoError) for each in chain):
            return f"it is gated; accept its conditions on {page}, then log in: hf auth login, or HF_TOKEN=..."
        if any(isinstance(each, RepositoryNotFoundError) for each in chain):
            return (
                f"there is no {self._at.type} repository '{self._at.repo}', or it is private and your token may not"
                " read it; check the name, and log in: hf auth login, or HF_TOKEN=..."
            )
        if status in (401, 403):
            return (
                f"the hub refuses your token (HTTP {status}); it needs the right to write to '{self._at.repo}' to push:"
                " hf auth login, or HF_TOKEN=..."
            )
        said = {f"{type(each).__name__}: {str(each).strip()}".partition("\n")[0]: None for each in (error, chain[-1])}
        return f"{self._api.endpoint} does not answer as it should ({'; '.join(said)}); try again later"


@cache
def _limit_waiting() -> None:
    """Gives every request of the hub's client a time limit; by default some wait for ever."""
    usual = _http._GLOBAL_CLIENT_FACTORY  # that of whoever set another one, or the default

    def client() -> Any:
        made = usual()
        made.timeout = TRANSFER_SECONDS
        return made

    set_client_factory(client)
