"""The record of a run, ``run.json``: every setting and fact that its checkpoints depend on."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...cache.schema import TapSpec
from ...errors import RunError
from ...files import read_json, write_json
from ...fingerprint import differences
from ...processes import select_device, world_size
from ...settings import Mark, Settings, marked, with_added
from ...version import code_version
from ..datasets.labels import class_prior, class_weights
from .checkpoint import checkpoint_steps, load_weights
from .domain import Domain
from .network import Network
from .settings import AugmentSettings, FusionSettings, ModelSettings, TrainSettings

__all__ = [
    "PRETRAINED",
    "build_network",
    "camera_count",
    "describe_domain",
    "load_network",
    "make_record",
    "open_record",
    "read_record",
    "write_record",
]

log = logging.getLogger(__name__)

NAME = "run.json"
FORMAT = 1
PRETRAINED = "pretrain"  #: the ``kind`` of the record of a run of 'xd3d pretrain'; others have none
#: Keys that every record has.
_KEYS = {"code", "model", "fusion", "augment", "train", "classes", "taps", "source", "target", "facts", "class_counts"}
#: Settings implied by records from before injection existed; variants were then named after the queries.
_BEFORE_INJECTION = {
    "inject": "none",
    "context": "none",
    "camera_dropout": 0.0,
    "lidar_stages": 0,
    "decoupling": "loss",
    "locate_queries": False,
}
_OLD_VARIANTS = {"no-interface": "voxels", "full": "agents"}
#: Groups of settings by their names in a record; their marks determine which may change when a run is resumed.
_GROUPS: Mapping[str, type[Settings]] = {
    "model": ModelSettings,
    "fusion": FusionSettings,
    "augment": AugmentSettings,
    "train": TrainSettings,
}
#: Other entries of a record that may change when a run is resumed.
_NOTES = ("code", "class_counts", "facts.caches", "init.micro_batches")


def open_record(run: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reads the record of ``run`` and checks that it agrees with ``record``; None for a new run.

    A run with checkpoints keeps its initial checkpoint, also if the run that it is of has later ones now.

    Raises:
        RunError: the folder belongs to a run with other settings; the message names each.
    """
    if not (run / NAME).exists():
        if checkpoint_steps(run):
            raise RunError(
                f"{run} holds checkpoints but no {NAME}; choose another folder with --run, or delete this one"
            )
        return None
    stored = read_record(run)
    if checkpoint_steps(run) and _later(stored.get("init"), record.get("init")):
        record = {**record, "init": stored["init"]}
    free = {f"{group}.{key}" for group, kind in _GROUPS.items() for key in marked(kind, Mark.FREE, Mark.MACHINE)}
    found = differences(_complete(stored), _complete({"format": FORMAT, **record}))
    faults = [line for line in found if line.split(":", 1)[0] not in free.union(_NOTES)]
    if faults:
        listed = "\n".join(f"  {line[:300]}" for line in faults)
        raise RunError(
            f"{run} was trained with other settings (expected: the run's, found: yours):\n{listed}\n"
            "Use the run's settings to resume it, or another folder (--run NAME) to start a new run"
        )
    if stored["code"] != code_version():
        log.warning("%s was started by xd3d %s and resumes with %s", run, stored["code"], code_version())
    return stored


def _later(stored: Mapping[str, Any] | None, found: Mapping[str, Any] | None) -> bool:
    """Whether the initial checkpoint ``found`` is a later one of the same run, whose training has gone on since."""
    return stored is not None and found is not None and found["run"] == stored["run"] and found["step"] > stored["step"]


def _complete(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``record`` with the settings that it leaves out because they have their defaults (``Mark.ADDED``)."""
    groups = {name: record[name] for name in _GROUPS if isinstance(record.get(name), Mapping)}
    return {**record, **{name: with_added(_GROUPS[name], values) for name, values in groups.items()}}


def write_record(run: Path, record: Mapping[str, Any]) -> None:
    """Creates a run folder with its record."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / NAME, {"format": FORMAT, **record})


def read_record(run: Path) -> dict[str, Any]:
    """Reads ``run.json``.

    Raises:
        RunError: ``run`` is not a run folder, is damaged, or has another format.
    """
    try:
        record = read_json(run / NAME)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(
            f"{run} is not a run: it is no folder with a {NAME}; name one that 'xd3d train' or 'xd3d pretrain' made"
        ) from error
    except ValueError as error:
        raise RunError(f"{run / NAME} is damaged ({error}); train again in another folder") from error
    if not isinstance(record, dict):
        raise RunError(f"{run / NAME} is damaged (no JSON object); train again in another folder")
    if record.get("format") != FORMAT:
        raise RunError(f"{run} has run format {record.get('format')}, this version reads {FORMAT}; train again")
    if missing := sorted(_KEYS - record.keys()):
        raise RunError(f"{run / NAME} is damaged (no {', '.join(missing)}); train again in another folder")
    if odd := [key for key in (*_GROUPS, "taps", "facts") if not isinstance(record[key], dict)]:
        raise RunError(f"{run / NAME} is damaged ({', '.join(odd)}: no JSON object); train again in another folder")
    return _current(record)


def _current(record: dict[str, Any]) -> dict[str, Any]:
    """Converts a record that an earlier version may have written to the current settings."""
    train, fusion = record["train"], record["fusion"]
    if "loggers" not in train:
        loggers = [name for name in ("tensorboard", "wandb") if train.get(name)]
        others = {name: value for name, value in train.items() if name not in ("tensorboard", "wandb")}
        record = {**record, "train": {**others, "loggers": loggers}}
    if "inject" in fusion:
        return record
    queries = _OLD_VARIANTS.get(fusion.get("variant", ""), "none")
    variant = "full" if queries != "none" else fusion.get("variant")
    return {**record, "fusion": {**fusion, **_BEFORE_INJECTION, "variant": variant, "queries": queries}}


def make_record(
    *,
    model: ModelSettings,
    fusion: FusionSettings,
    augment: AugmentSettings,
    settings: TrainSettings,
    source: Domain | None,
    target: Domain | None,
    taps: Mapping[str, TapSpec],
    facts: Mapping[str, Any],
    validation: Domain | None = None,
    init: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns everything a run depends on, as JSON; there must be a source or a target."""
    sides = [side for side in (source, target) if side is not None]
    return {
        "code": code_version(),
        "model": model.model_dump(mode="json"),
        "fusion": fusion.model_dump(mode="json"),
        "augment": augment.model_dump(mode="json"),
        "train": settings.model_dump(mode="json"),
        "processes": world_size(),
        "classes": list(sides[0].merge.classes),
        "taps": {name: asdict(spec) for name, spec in taps.items()},
        "init": init,
        "pseudo_labels": target.pseudo.provenance() if target is not None and target.pseudo is not None else None,
        **{
            name: describe_domain(domain) if domain is not None else None
            for name, domain in (("source", source), ("target", target), ("validation", validation))
        },
        "facts": dict(facts),
    }


def load_network(
    run: Path,
    record: Mapping[str, Any],
    step: int,
    *,
    model: ModelSettings,
    fusion: FusionSettings,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Network:
    """Loads the network of the checkpoint of ``step``, in evaluation mode.

    ``model`` and ``fusion`` are the settings of its ``record``, except that device and sparse backend are those of this
    machine; the weights do not depend on them.

    Raises:
        RunError: the record or the checkpoint is damaged.
        BackendError: the requested device or backend is not available.
    """
    with _reading():
        taps = {name: TapSpec(**{**spec, "extent": tuple(spec["extent"])}) for name, spec in record["taps"].items()}
    network = build_network(record, model=model, fusion=fusion, taps=taps, device=select_device(device))
    load_weights(run, network, step)
    return network.eval()


def build_network(
    record: Mapping[str, Any],
    *,
    model: ModelSettings,
    fusion: FusionSettings,
    taps: Mapping[str, TapSpec],
    device: torch.device,
) -> Network:
    """Builds an untrained network, with the class prior from the class counts of ``record`` if it has them.

    Raises:
        RunError: the record is damaged.
        BackendError: the backend is not available.
    """
    with _reading():
        cameras, classes = camera_count(record), tuple(record["classes"])
        counts = np.array(record.get("class_counts") or [], np.int64)
        prior = class_prior(counts, class_weights(counts)) if counts.any() else None
    network = Network(model=model, fusion=fusion, classes=classes, taps=taps, cameras=cameras, device=device)
    network.prior = prior
    return network


@contextmanager
def _reading() -> Iterator[None]:
    """Turns errors from reading the values of a damaged record into a ``RunError``."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"The run's {NAME} is damaged, or of another version of xd3d ({error}); train again") from error


def camera_count(record: Mapping[str, Any]) -> int:
    """Returns the number of cameras that the network of ``record`` distinguishes."""
    return len((record["source"] or record["target"])["cameras"])


def describe_domain(domain: Domain) -> dict[str, Any]:
    """Returns the description of a domain in a record: index and frames, by digest."""
    rows = np.ascontiguousarray(domain.frames, dtype="<i8")
    return {
        "dataset": domain.index.dataset,
        "index": domain.index.digest,
        "cameras": list(domain.index.cameras),
        "merge": domain.merge.name,
        "frames": len(rows),
        "frame_rows": hashlib.sha256(rows.tobytes()).hexdigest(),
    }
