"""``xd3d push`` and ``xd3d pull``: finds what is meant, checks the licence, and says what was done."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...cache.metadata import MANIFEST as ROOT
from ...cache.network_parts import part_paths
from ...cache.stores import join_location, open_store
from ...errors import ConfigError, MissingDataError, StoreError
from ...stages.datasets.licences import licence_of
from ..caches import ImageChoice
from ..console import Outcome
from ..workspace import Workspace
from .content import Choice
from .manifest import Kind
from .pull import pull_cache
from .push import cache_dataset, previous, push_cache
from .remotes import open_remote
from .runs import RECORD, pull_run, push_run

__all__ = ["pull", "push"]

log = logging.getLogger(__name__)

ALL_IMAGES = ImageChoice()


def push(
    workspace: Workspace,
    what: str,
    place: str,
    *,
    taps: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
    images: ImageChoice = ALL_IMAGES,
    confirm_licence: bool = False,
    public: bool = False,
    replace: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Sends ``what``, a cache or a run by name or location, to ``place``.

    ``taps``, ``networks`` and ``images`` select parts of a cache.

    Raises:
        MissingDataError: there is no such cache or run.
        ConfigError: the choice does not fit, or the licence of the data was not confirmed.
        CacheError, CacheMismatchError, RunError, StoreError, DiskSpaceError: see ``push_cache`` and ``push_run``.
    """
    kind, location = _find(workspace, what)
    if kind == "run":
        if taps or networks or not images.whole:
            raise ConfigError(f"{what} is a run; taps, networks and images are chosen of caches only")
        target = open_remote(place, kind="run", writing=True, public=public, dry_run=dry_run)
        done = push_run(workspace, Path(location), target, replace=replace, dry_run=dry_run)
    else:
        first = open_store(next(iter(part_paths(location)), location))
        dataset = cache_dataset(first, str(location).rpartition("/")[2])
        _require_licence(dataset, place, confirmed=confirm_licence or dry_run)
        target = open_remote(place, kind="cache", writing=True, public=public, dry_run=dry_run)
        choice = Choice(taps=taps, networks=networks, images=images.keys(workspace, dataset))
        done = push_cache(workspace, location, target, choice, replace=replace, dry_run=dry_run)
    if dry_run:
        return Outcome(result=done, text=f"{_amount(done)} would be sent to {done['place']}, {_there(done)}")
    return Outcome(
        result=done,
        text=f"The {kind} {done['name']} is in {done['place']} ({_amount(done)}; {_there(done)}{_left(done)}).\n"
        f"It is fetched with: xd3d pull {shlex.quote(done['place'])}",
    )


def pull(
    workspace: Workspace,
    place: str,
    *,
    out: str | None = None,
    taps: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
    images: ImageChoice = ALL_IMAGES,
    replace: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Fetches the cache or run that was pushed to ``place``; taps, networks and images select parts of a cache.

    Raises:
        ConfigError: the choice does not fit, or ``out`` holds other things.
        StoreError: nothing was pushed there, ``place`` cannot be reached, or a file is damaged.
        CacheError, CacheMismatchError, RunError, DiskSpaceError: see ``pull_cache`` and ``pull_run``.
    """
    dataset_repository = place.startswith("hf://datasets/")
    source = open_remote(place, kind="cache" if dataset_repository else "run", writing=False)
    manifest = previous(source)
    if manifest is None:
        raise StoreError(
            f"There is no finished push in {place}: it has no xd3d-share.json. Check the address; if a push was"
            " stopped, the same xd3d push finishes it"
        )
    if manifest.kind == "run":
        folder = None if out is None else Path(out).absolute()
        done = pull_run(workspace, source, manifest, out=folder, replace=replace, dry_run=dry_run)
        use = f"xd3d evaluate --run {shlex.quote(str(folder or done['name']))}"
        datasets = manifest.facts.get("datasets", [])
    else:
        datasets = [str(manifest.facts.get("dataset", ""))]
        choice = Choice(taps=taps, networks=networks, images=images.keys(workspace, datasets[0]))
        done = pull_cache(workspace, source, manifest, choice, out=out, replace=replace, dry_run=dry_run)
        use = "xd3d train --cached (with the --config and --set that it was made with)"
    for dataset in datasets:
        licence = licence_of(dataset)
        log.warning("The terms of %s hold for this too: %s. %s", dataset, licence.name, licence.sharing)
    if dry_run:
        return Outcome(result=done, text=f"{_amount(done)} would be fetched from {place}, {_there(done)}")
    where = done["run"] if manifest.kind == "run" else done["cache"]
    text = f"The {manifest.kind} {done['name']} is in {where} ({_amount(done)}; {_there(done)}{_left(done)})."
    return Outcome(result=done, text=f"{text}\nUse it with: {use}")


def _find(workspace: Workspace, what: str) -> tuple[Kind, Path | str]:
    """Returns whether ``what`` is a run or a cache, and where: a location, or a name in the workspace."""
    if "://" in what:
        return "cache", what.rstrip("/")
    run = workspace.find_run(Path(what))
    if (run / RECORD).is_file():
        return "run", run
    root = workspace.cache_root()
    for location in (Path(what).absolute(), join_location(root, what)):
        if open_store(location).exists(ROOT):
            return "cache", location
    raise MissingDataError(
        f"There is no cache or run {what}: neither a folder with {ROOT} or {RECORD}, nor a name in {root} or"
        f" {workspace.home / 'runs'}"
    )


def _require_licence(dataset: str, place: str, *, confirmed: bool) -> None:
    """Says what the licence of the data means; a ``place`` with an address needs a confirmation.

    Raises:
        ConfigError: it is not confirmed.
    """
    licence = licence_of(dataset)
    said = f"{dataset}: {licence.name} {licence.url}\n{licence.sharing}"
    if "://" in place and not place.startswith("file://") and not confirmed:
        raise ConfigError(
            f"Whoever can read {place} gets what was computed from the images of a data set.\n{said}\nIf you may"
            " share it with them, say so with --confirm-licence"
        )
    log.warning("%s", said)


def _amount(done: dict[str, Any]) -> str:
    return f"{done['files']:,} files, {done['bytes'] / 1e6:,.1f} MB"


def _there(done: dict[str, Any]) -> str:
    return f"{done['there'] / 1e6:,.1f} MB of them were there"


def _left(done: dict[str, Any]) -> str:
    return f"; {done['left_out']} uncommitted images were left out" if done.get("left_out") else ""
