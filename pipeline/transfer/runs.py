"""Pushes and pulls runs: the record, the best weights in safetensors, scores and log; no optimiser, no pictures."""

import hashlib
import json
import re
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from ...cache.stores import open_store
from ...errors import StoreError
from ...files import read_json
from ...locks import exclusive_lock
from ...stages.evaluate.metrics import Metrics
from ..workspace import Workspace
from .cards import run_card
from .content import Shared, made_item
from .copy import Item
from .local_paths import Machine
from .manifest import Manifest, plain_name
from .pull import pull_items
from .push import push_items
from .remotes import Remote, StoreRemote

__all__ = ["PULLED", "pull_run", "push_run"]

#: End of the name of a pulled run: training with its settings makes another one, since this one cannot be resumed.
PULLED = "-pulled"

RECORD = "run.json"
LOG = "log.jsonl"
#: What a run may bring; names of anything else in a manifest are refused.
_FILES = re.compile(
    rf"{re.escape(RECORD)}|{re.escape(LOG)}|scores/[\w.-]+\.json|checkpoints/step-[0-9]{{8,}}/(model\.safetensors|state\.json)"
)


def push_run(workspace: Workspace, run: Path, remote: Remote, *, replace: bool, dry_run: bool) -> dict[str, Any]:
    """Sends a run to a remote, with a model card.

    Returns the dictionary of ``push_items``, with ``kind``, ``name`` and ``step`` (that of the weights).

    Raises:
        RunError: the folder holds no run, or it has no checkpoint yet.
        CacheMismatchError, ConfigError, StoreError, DiskSpaceError: see ``push_items``.
    """
    from ...stages.train.checkpoint import best_step, checkpoint_steps
    from ...stages.train.record import read_record

    record, step, machine = read_record(run), best_step(run), Machine.current(workspace)
    shared = machine.without_paths(read_json(run / RECORD))
    shared["facts"]["caches"] = None  # where caches are kept is the reader's own matter
    scores = {path.stem: Metrics.load(path) for path in sorted((run / "scores").glob("*.json"))}
    folder = "checkpoints/step-{:08d}"
    states = {f"{folder.format(each)}/state.json" for each in (step, checkpoint_steps(run)[-1])}
    items = [
        _text(RECORD, shared),
        *(_text(f"scores/{name}.json", machine.without_paths(metrics.to_json())) for name, metrics in scores.items()),
        *(_file(run, name) for name in (*sorted(states), f"{folder.format(step)}/model.safetensors")),
        *([_file(run, LOG)] if (run / LOG).is_file() else []),
    ]
    name = plain_name(run.resolve().name.removesuffix(PULLED))
    datasets = list(dict.fromkeys(side["dataset"] for side in (record["source"], record["target"]) if side))
    wanted = Manifest(
        kind="run",
        name=name,
        identity=items[0].sha256,
        facts={"datasets": datasets, "step": step, "classes": record["classes"], "code": record["code"]},
    )
    card = run_card(name=name, place=remote.describe(), record=shared, step=step, scores=scores, datasets=datasets)
    check = machine.require_no_paths
    done = push_items(items, remote, wanted, card=card, check=check, replace=replace, dry_run=dry_run)
    return {"kind": "run", "name": name, "step": step, **done}


def _text(name: str, value: Any) -> Item:
    return made_item(name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _file(run: Path, name: str) -> Item:
    return Item(name=name, size=(run / name).stat().st_size, read=(run / name).read_bytes)


def pull_run(
    workspace: Workspace, remote: Remote, manifest: Manifest, *, out: Path | None, replace: bool, dry_run: bool
) -> dict[str, Any]:
    """Fetches a run into the runs of the workspace, where commands find it by name; or into ``out``.

    Returns the dictionary of ``pull_items``, with ``kind``, ``name`` and ``run`` (its folder).

    Raises:
        StoreError: a file is damaged, missing, or none of a run; the same call resumes.
        RunError: what was pulled is no run of this version, or another process uses the folder.
        CacheMismatchError, ConfigError, DiskSpaceError: see ``pull_items``.
    """
    from ...stages.train.checkpoint import best_step
    from ...stages.train.record import read_record

    if strange := next((name for name in manifest.files if not _FILES.fullmatch(name)), None):
        raise StoreError(f"{remote.describe()} names the file {strange!r}, which no run has; nothing was pulled")
    name = f"{manifest.name}{PULLED}"
    folder = out or workspace.run(name)
    shared, record = Shared(remote, manifest), folder / RECORD
    done = pull_items(
        [shared.item(name) for name in manifest.files],
        StoreRemote(open_store(folder)),
        changed(manifest, identity=manifest.files[RECORD].sha256 if RECORD in manifest.files else ""),
        found=hashlib.sha256(record.read_bytes()).hexdigest() if record.is_file() else None,
        lock=lambda: exclusive_lock(folder, work="pulls a run", option="--out"),
        replace=replace,
        dry_run=dry_run,
    )
    if not dry_run:
        read_record(folder)
        best_step(folder)
    return {"kind": "run", "name": name, "run": str(folder), **done}
