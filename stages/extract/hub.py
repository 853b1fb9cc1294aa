"""The model hub: finds earlier downloads, and downloads files with checked digests and resumable transfers.

Weights are checked before they enter the hub's cache folder: against the published digest if one is known, else against
the digest that the hub reports. An interrupted transfer leaves a partial file, and the next one resumes from it, also
after a kill; the hub's own client (2.4) starts anew then.
"""

import fcntl
import fnmatch
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ...errors import ModelError
from .digests import file_digest

__all__ = ["FetchedFile", "HubFiles", "downloaded", "fetch"]

HUB_TIMEOUT = 10.0  #: seconds the hub may take to answer
WEIGHTS = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Files of a repository on the hub: its id ``owner/name``, and path patterns."""

    hub_id: str
    patterns: tuple[str, ...]

    def among(self, files: Iterable[str]) -> list[str]:
        """Returns those of ``files`` that fit a pattern, sorted."""
        return sorted(file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in self.patterns))


@dataclass(frozen=True, kw_only=True)
class FetchedFile:
    """One local file of weights. ``checked`` names the digest that it was compared with.

    ``published``: the digest in xd3d's catalogue; ``hub``: the digest that the hub reported; ``nothing``: neither was
    known.
    """

    file: str
    bytes: int
    sha256: str
    checked: str


def downloaded(wanted: HubFiles) -> Path | None:
    """Returns the folder of an earlier download of a repository, complete or not; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(wanted.hub_id, allow_patterns=list(wanted.patterns), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):  # the latter: a path that resembles a hub id
        return None


def fetch(wanted: HubFiles, published: Mapping[str, str], *, offline: bool = False) -> tuple[Path, list[FetchedFile]]:
    """Downloads the missing files of ``wanted``; returns the folder and its weights, all checked.

    Raises:
        ModelError: offline, no answer in time, no such repository or files, or a digest that differs: the message then
            names the file and both digests, and the file is removed.
    """
    from huggingface_hub import constants, snapshot_download

    if offline or constants.HF_HUB_OFFLINE:
        if (local := downloaded(wanted)) is None:
            raise _unreachable(wanted, "extract.offline or --offline is set" if offline else "HF_HUB_OFFLINE is set")
        return _checked(local, wanted, published, {})
    try:
        revision, offered = _offered(wanted, published)
        for file, announced in offered.items():
            if announced:
                _download_weights(wanted, revision, file, announced)
        # the hub's client downloads the small files, and links the weights
        patterns = list(wanted.patterns)
        folder = Path(snapshot_download(wanted.hub_id, allow_patterns=patterns, etag_timeout=HUB_TIMEOUT))
    except ModelError:
        raise
    except Exception as error:  # the hub's client raises errors of several libraries
        detail = str(error).splitlines()[0] if str(error) else "no detail"
        raise _unreachable(wanted, f"{type(error).__name__}: {detail}") from error
    return _checked(folder, wanted, published, offered)


def _checked(
    folder: Path, wanted: HubFiles, published: Mapping[str, str], announced: Mapping[str, str | None]
) -> tuple[Path, list[FetchedFile]]:
    """Checks the digests of the local weights, since an earlier download may be damaged."""
    files = wanted.among(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{WEIGHTS}"))
    return folder, [_report(folder, file, announced.get(file), published.get(file)) for file in files]


def _offered(wanted: HubFiles, published: Mapping[str, str]) -> tuple[str, dict[str, str | None]]:
    """Returns the current revision on the hub and its weight files, each with the reported sha256 or None."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(wanted.hub_id, files_metadata=True, timeout=HUB_TIMEOUT)
    offered = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or []}
    chosen = {file: offered[file] for file in wanted.among(offered)}
    if not chosen:
        raise ModelError(
            f"The hub's '{wanted.hub_id}' has none of the files {', '.join(wanted.patterns)} (found: "
            f"{', '.join(sorted(offered)[:12]) or 'nothing'}); give another repository, or owner/name:FILE.safetensors"
        )
    weights = {file: digest for file, digest in chosen.items() if file.endswith(WEIGHTS)}
    for file, announced in weights.items():
        if announced and announced != (known := published.get(file, announced)):
            raise _differs(wanted, file, known, announced, "it was not downloaded")
    return str(info.sha), weights


def _download_weights(wanted: HubFiles, revision: str, file: str, announced: str) -> None:
    """Downloads one file to the hub's cache folder, named by its sha256; resumes a partial file."""
    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=wanted.hub_id, repo_type="model") / "blobs"
    target, partial = folder / announced, folder / f"{announced}.xd3d-partial"
    if target.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    facts = get_hf_file_metadata(hf_hub_url(wanted.hub_id, file, revision=revision), timeout=HUB_TIMEOUT)
    headers = {"Accept-Encoding": "identity"}
    to_hub = urlsplit(facts.location)[:2] == urlsplit(constants.ENDPOINT)[:2]  # not the server that it redirects to
    if (token := get_token()) and to_hub:
        headers["Authorization"] = f"Bearer {token}"
    with partial.open("a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ModelError(
                f"Another process is downloading {partial}; wait for it, then run the command again"
            ) from error
        if target.exists():  # another process has just finished it
            return
        if facts.size is not None and stream.tell() > facts.size:  # what is there is no part of the file
            stream.seek(0)
            stream.truncate()
        http_get(
            facts.location,
            stream,
            resume_size=stream.tell(),
            headers=headers,
            expected_size=facts.size,
            displayed_filename=file,
        )
        stream.seek(0)
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != announced:
            partial.unlink()
            raise _differs(wanted, file, announced, found, "the download was removed; fetch it again")
        partial.replace(target)


def _report(folder: Path, file: str, announced: str | None, known: str | None) -> FetchedFile:
    path = folder / file
    found, expected = file_digest(path), known if known else announced
    if expected and found != expected:
        raise ModelError(
            f"{path} has sha256 {found}, expected {expected}; it is damaged or another file: delete it (and the file "
            "it links to), then fetch the model again"
        )
    checked = "published" if known else "hub" if announced else "nothing"
    return FetchedFile(file=file, bytes=path.stat().st_size, sha256=found, checked=checked)


def _differs(wanted: HubFiles, file: str, expected: str, found: str, outcome: str) -> ModelError:
    return ModelError(
        f"{file} of the hub's '{wanted.hub_id}' has sha256 {found}, expected {expected}; {outcome}. A model of another "
        "source is given as a folder, or by its own hub id"
    )


def _unreachable(wanted: HubFiles, reason: str) -> ModelError:
    return ModelError(
        f"The model '{wanted.hub_id}' is not on this machine and could not be fetched from the hub ({reason}); run "
        "'xd3d models fetch' where there is a network, or give a folder in diffusers' layout (extract.model=DIR), "
        "downloaded elsewhere and copied here"
    )
