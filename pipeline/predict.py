"""Labels for sweeps from a trained run: the folder they go to, what it says of itself, and a picture."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_bytes
from .console import Outcome
from .folders import claim_folder
from .runs import TrainedRun
from .workspace import Workspace

__all__ = ["FACTS", "PICTURE_SUFFIX", "label_facts", "predict"]

FACTS = "classes.json"
PICTURE_SUFFIX = ".labels.png"
#: What must be the same when a folder of labels is gone on with.
IDENTITY = ("sweeps", "columns", "weights", "classes")


def predict(
    workspace: Workspace,
    run: Path | None,
    points: Path,
    *,
    out: Path | None,
    columns: int | None,
    picture: bool,
    machine: Sequence[str] = (),
) -> Outcome:
    """Label the sweep or the folder of sweeps ``points`` with a run's 3D head; the exit code is 1 when one failed.

    ``machine`` holds settings of this machine, as ``TrainedRun.open`` takes them.

    Raises:
        MissingDataError: no run, or no sweep.
        ConfigError: ``out`` holds labels of other sweeps or of another network.
        RunError: the run's 3D head needs images.
    """
    from ..stages.predict.sweeps import LABEL_SUFFIX, find_sweeps, label_sweeps

    begin = time.perf_counter()
    points = points.resolve() if ".." in points.parts else points.absolute()  # its name names the folder of labels
    sweeps = find_sweeps(points)
    trained = TrainedRun.open(workspace, run, machine)
    trained.require_lidar_only()
    network = trained.network
    out = (out or workspace.home / "labels" / trained.folder.name / points.name).absolute()
    claim_folder(
        out / FACTS,
        {
            "files": f"NAME{LABEL_SUFFIX}: one little-endian uint32 a point, in the order of the sweep's points",
            **label_facts(trained),
            "sweeps": str(points.resolve()),
            "columns": columns,
        },
        IDENTITY,
        what="labels of other sweeps or another network",
        files=(f"*{LABEL_SUFFIX}", f"*{PICTURE_SUFFIX}"),
        option="--out",
    )
    done = label_sweeps(network, sweeps, out, columns=columns)
    unread = {fault.path for fault in done.failed}
    whole = [sweep for sweep in sweeps if sweep not in unread]
    shown = _picture(out, whole[0], columns, network.classes) if picture and whole else None
    faults = [f"  {fault}" for fault in done.failed]
    summary = f"{done.labelled} sweeps labelled, {done.kept} had labels, {len(faults)} failed. The labels are in {out}"
    return Outcome(
        result={
            "out": str(out),
            "sweeps": len(sweeps),
            "labelled": done.labelled,
            "kept": done.kept,
            "failed": [{"file": str(fault.path), "reason": fault.reason} for fault in done.failed],
            "points": done.points,
            "classes": list(network.classes),
            "picture": str(shown) if shown else None,
            "seconds": round(time.perf_counter() - begin, 3),
        },
        text="\n".join([*faults, summary]),
        exit_code=1 if faults else 0,
    )


def label_facts(trained: TrainedRun) -> dict[str, Any]:
    """Returns what a folder of labels says of itself: what the numbers mean, and which network wrote them."""
    from ..stages.train.checkpoint import checkpoint_digest
    from ..version import code_version
    from .report.figures import UNLABELLED, class_colours

    classes = trained.network.classes
    colours = [UNLABELLED, *class_colours(classes)]
    return {
        "classes": [
            {"label": label, "name": name, "colour": [round(255 * float(part)) for part in colour]}
            for label, (name, colour) in enumerate(zip(["unlabelled", *classes], colours, strict=True))
        ],
        "run": str(trained.folder),
        "step": trained.step,
        "weights": checkpoint_digest(trained.folder, trained.step),
        "code": code_version(),
    }


def _picture(out: Path, sweep: Path, columns: int | None, classes: Sequence[str]) -> Path:
    """Draw a sweep with its labels, from above."""
    from ..stages.datasets.sweeps import read_coordinates
    from ..stages.predict.sweeps import label_path, read_labels
    from .report.figures import labels_from_above

    labels = label_path(out, sweep)
    path = labels.with_suffix(PICTURE_SUFFIX)
    write_bytes(path, labels_from_above(read_coordinates(sweep, columns=columns), read_labels(labels), classes))
    return path
