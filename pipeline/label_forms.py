"""What commands that write labels share: numbers and colours, the facts beside the files, and the summary."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from ..errors import ConfigError, MissingDataError
from ..files import write_bytes
from ..stages.datasets.catalogue import FOLDER
from ..stages.datasets.index import FrameIndex
from ..stages.datasets.labels import get_merge
from ..stages.evaluate.settings import adaptation_name
from ..stages.predict.label_form import LabelForm
from ..version import code_version
from .console import Outcome
from .domains import open_index
from .runs import TrainedRun

if TYPE_CHECKING:
    from ..stages.predict.sweeps import LabelSummary

__all__ = ["FACTS", "PICTURE_SUFFIX", "LabelIds", "draw_labels", "label_facts", "label_form", "label_outcome"]

LabelIds = Literal["train", "raw"]

FACTS = "classes.json"
PICTURE_SUFFIX = ".labels.png"


def label_form(
    trained: TrainedRun, ids: LabelIds = "train", *, colour: bool = False, index: FrameIndex | None = None
) -> tuple[LabelForm, str]:
    """Returns the form of a run's labels, and a phrase that says what their numbers are.

    ``train`` numbers are the classes' plus one. ``raw`` ones are the ids of the data set of ``index`` or, if it lacks
    some, of the run's source. ``colour``: clouds are coloured.

    Raises:
        ConfigError: the classes have no raw ids.
    """
    classes = trained.network.classes
    numbers, meaning = LabelForm.of(classes).numbers, "train: the class plus one"
    if ids == "raw":
        raw, dataset = _raw_ids(trained, index)
        known = [raw[name] for name in classes]
        numbers, meaning = np.array([*known, _unused_id(known)]), f"raw: those of {dataset}"
    palette = np.round(255 * _colours(classes)).astype(np.uint8) if colour else None
    return LabelForm(numbers=numbers, palette=palette), meaning


def label_facts(trained: TrainedRun, form: LabelForm, meaning: str, *, norm_window: int | None) -> dict[str, Any]:
    """Returns what a folder of labels says of itself: what the numbers mean, and the network that wrote them."""
    from ..stages.train.checkpoint import checkpoint_digest

    names, colours = [*trained.network.classes, "unlabelled"], _colours(trained.network.classes)
    rows = [
        {"label": int(number), "name": name, "colour": [round(255 * float(part)) for part in colour]}
        for number, name, colour in zip(form.numbers, names, colours, strict=True)
    ]
    return {
        "classes": [rows[-1], *rows[:-1]],
        "ids": meaning,
        "run": str(trained.folder),
        "step": trained.step,
        "weights": checkpoint_digest(trained.folder, trained.step),
        "adapt": adaptation_name(norm_window),
        "code": code_version(),
    }


def draw_labels(points: Float[np.ndarray, "points 3"], labels: Path, form: LabelForm, classes: Sequence[str]) -> Path:
    """Draws the points of a sweep from above with the classes in its file ``labels``, beside which the picture is."""
    from ..stages.predict.sweeps import read_labels
    from .report.figures import labels_from_above

    path = labels.with_suffix(PICTURE_SUFFIX)
    write_bytes(path, labels_from_above(points, form.classes(read_labels(labels)) + 1, classes))
    return path


def label_outcome(
    done: "LabelSummary", out: Path, *, sweeps: int, begin: float, advice: str = "", further: Mapping[str, Any]
) -> Outcome:
    """Returns what a command that labelled ``sweeps`` sweeps into ``out`` prints; the exit code is 1 if one failed.

    ``begin``: its start, by ``time.perf_counter``. ``further``: further keys of the result.
    """
    faults = [f"  {fault}" for fault in done.failed]
    summary = f"{done.labelled} sweeps labelled, {done.kept} were labelled before, {len(faults)} failed."
    return Outcome(
        result={
            "out": str(out),
            "sweeps": sweeps,
            "labelled": done.labelled,
            "kept": done.kept,
            "failed": [{"file": str(fault.path), "reason": fault.reason} for fault in done.failed],
            "points": done.points,
            "dropped": done.dropped,
            **further,
            "seconds": round(time.perf_counter() - begin, 3),
        },
        text="\n".join([*faults, f"{summary} The labels are in {out}{advice}"]),
        exit_code=1 if faults else 0,
    )


def _colours(classes: "tuple[str, ...]") -> Any:
    """Returns RGB in [0, 1] of each class, and last of a point without one."""
    from .report.figures import UNLABELLED, class_colours

    return np.vstack([class_colours(classes), UNLABELLED])


def _unused_id(known: list[int]) -> int:
    """Returns the number of a point without a class: 0, or where that is the id of a class, the largest free one."""
    return 0 if 0 not in known else next(number for number in range(0xFFFF, 0, -1) if number not in known)


def _raw_ids(trained: TrainedRun, index: FrameIndex | None) -> tuple[dict[str, int], str]:
    """Returns the raw id of each class, and the data set that they are from.

    Raises:
        ConfigError: no data set has one for every class.
    """
    classes, source = trained.network.classes, trained.config.data.source.dataset
    reasons = []
    for dataset, known in ((index.dataset if index else source, index), (source, None)):
        try:
            ids = _ids_in(trained, dataset, known)
        except (ConfigError, MissingDataError) as error:
            reasons.append(str(error))
            continue
        absent = [name for name in classes if name not in ids]
        if not absent:
            return ids, dataset
        reasons.append(f"{dataset} has none of {', '.join(absent)}")
    raise ConfigError(f"The run's classes have no raw ids ({'; '.join(dict.fromkeys(reasons))}); leave out --ids raw")


def _ids_in(trained: TrainedRun, dataset: str, index: FrameIndex | None) -> dict[str, int]:
    """Returns the raw id in ``dataset`` of each class that has one there."""
    if dataset == FOLDER:
        described = (index or open_index(trained.workspace, FOLDER)).described["classes"]
        return {name: int(ids[0]) for name, ids in described.items() if ids}
    merge = get_merge(trained.config.data.merge, dataset)
    return dict(zip(merge.classes, map(int, merge.raw_ids), strict=True))
