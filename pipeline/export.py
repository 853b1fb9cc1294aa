"""Predictions of a run in the official formats, written while the run is scored."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..stages.evaluate.official import official_ids, require_official
from ..stages.evaluate.scores import FramePrediction
from ..stages.evaluate.settings import FusionRule, adaptation_name
from ..stages.train.domain import Domain
from ..version import code_version
from .folders import claim_folder

if TYPE_CHECKING:
    from ..stages.predict.submission import Submission
    from .runs import TrainedRun

__all__ = ["exported", "log_faults", "open_submission"]

log = logging.getLogger(__name__)

FACTS = "export.json"
#: What is written beside them.
FILES = ("lidarseg/*/*.bin", "*/submission.json", "sequences/*/predictions/*.label", "*.yaml")
#: Facts that must match before predictions are added to a folder.
IDENTITY = ("dataset", "merge", "weights", "images", "points", "adapt")


def exported(
    run: "TrainedRun",
    domain: Domain,
    predictions: Iterable[FramePrediction],
    out: Path,
    *,
    fusion: FusionRule,
    norm_window: int | None = None,
) -> Iterator[FramePrediction]:
    """Yields the predictions of ``domain``, and writes the classes of all points of each sweep to ``out``.

    ``fusion`` is the rule that they were fused by, ``norm_window`` that of ``predict_frames``. Faults that an official
    evaluator would find are logged at the end.

    Raises:
        ConfigError: see ``open_submission``.
        DataError: the token of a keyframe, which names its prediction, is not in the tables.
    """
    from ..stages.predict.whole_sweeps import sweep_prediction

    store = open_submission(run, domain, out, fusion=fusion, norm_window=norm_window, option="--export")
    rows = [int(row) for row in domain.frames]
    for position, prediction in enumerate(predictions):
        frame = domain.unlabelled().load(position)
        store.write(rows[position], sweep_prediction(run.network, domain, position, frame, prediction))
        yield prediction
    log_faults(store, rows, images=domain.features is not None)


def open_submission(
    run: "TrainedRun",
    domain: Domain,
    out: Path,
    *,
    fusion: FusionRule,
    norm_window: int | None = None,
    option: str,
) -> "Submission":
    """Opens the folder ``out``, given by ``option``, for predictions of ``domain`` in the official format.

    Raises:
        ConfigError: the data set has no official format, or ``out`` holds predictions of another network or
            by another rule.
    """
    from ..stages.predict.submission import ARCHIVE, Submission

    index, merge = domain.index, domain.merge
    require_official(index.dataset)
    claim_folder(
        out / FACTS,
        _facts(run, domain, official_ids(merge, index.dataset).tolist(), fusion, norm_window),
        IDENTITY,
        what="predictions of another network, adaptation, rule of fusion or data set",
        files=(*FILES, ARCHIVE),
        option=option,
    )
    return Submission(out=out, index=index, merge=merge)


def log_faults(store: "Submission", rows: Sequence[int], *, images: bool) -> None:
    """Writes the metadata of ``store`` and logs the faults that an official evaluator would find."""
    for fault in store.finish(rows, images=images):
        log.warning("%s: %s", store.out, fault)


def _facts(
    run: "TrainedRun", domain: Domain, ids: list[int], fusion: FusionRule, norm_window: int | None
) -> dict[str, Any]:
    """What a folder of predictions says of itself: what its numbers mean, and where they come from."""
    from ..stages.train.checkpoint import checkpoint_digest

    summed = "the class of xM" if domain.features is not None else "the class of the 3D head"
    rest = "none" if run.network.needs_images else "the 3D head, which is given the whole sweep"
    return {
        "dataset": domain.index.dataset,
        "merge": domain.merge.name,
        "classes": [{"number": number, "name": name} for number, name in zip(ids, domain.merge.classes, strict=True)],
        "points": {
            "scored": summed if fusion == "sum" else f"the class of the fused prediction ({fusion})",
            "seen by no camera": "none are left out" if domain.every_point else rest,
        },
        "images": domain.features is not None,
        "run": str(run.folder),
        "step": run.step,
        "weights": checkpoint_digest(run.folder, run.step),
        "code": code_version(),
        "adapt": adaptation_name(norm_window),
    }
