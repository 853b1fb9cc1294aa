"""Labels for sweeps from a trained run: the folder they go to, what it says of itself, and a picture."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from ..stages.datasets.sweeps import load_sweep
from ..stages.predict.label_form import CLOUD_SUFFIX
from .console import Outcome
from .folders import claim_folder
from .label_forms import FACTS, PICTURE_SUFFIX, LabelIds, draw_labels, label_facts, label_form, label_outcome
from .runs import TrainedRun
from .workspace import Workspace, absolute_path

__all__ = ["predict"]

#: What must be equal for a folder of labels to be resumed.
IDENTITY = ("sweeps", "columns", "weights", "classes", "adapt")


def predict(
    workspace: Workspace,
    run: Path | None,
    points: Path,
    *,
    out: Path | None,
    columns: int | None,
    picture: bool,
    norm_window: int | None = None,
    ids: LabelIds = "train",
    colour: bool = False,
    machine: Sequence[str] = (),
) -> Outcome:
    """Labels the sweep or the folder of sweeps ``points`` with a run's 3D head; the exit code is 1 when one failed.

    ``norm_window`` adapts BatchNorm, as for data sets. ``ids``: which numbers the classes have, see ``label_form``.
    ``colour``: coloured clouds are written too. ``machine`` holds settings of this machine, as ``TrainedRun.open``
    takes them.

    Raises:
        MissingDataError: no run, or no sweep.
        ConfigError: ``out`` holds labels of other sweeps or of another network, or the classes have no raw ids.
        RunError: the run's 3D head needs images, or the network has no BatchNorm to adapt.
    """
    from ..stages.predict.adapted_norms import adapted_norms
    from ..stages.predict.sweeps import LABEL_SUFFIX, find_sweeps, label_path, label_sweeps

    begin = time.perf_counter()
    points = absolute_path(points)  # its name names the folder of labels
    sweeps = find_sweeps(points)
    trained = TrainedRun.open(workspace, run, machine)
    trained.require_lidar_only()
    trained.require_adaptable(norm_window)
    network = trained.network
    form, meaning = label_form(trained, ids, colour=colour)
    out = (out or workspace.home / "labels" / trained.folder.name / points.name).absolute()
    claim_folder(
        out / FACTS,
        {
            "files": f"NAME{LABEL_SUFFIX}: one little-endian uint32 a point, in the order of the sweep's points",
            **label_facts(trained, form, meaning, norm_window=norm_window),
            "sweeps": str(points.resolve()),
            "columns": columns,
        },
        IDENTITY,
        what="labels of other sweeps, or of another or otherwise adapted network",
        files=(f"*{LABEL_SUFFIX}", f"*{PICTURE_SUFFIX}", f"*{CLOUD_SUFFIX}"),
        option="--out",
    )
    with adapted_norms(network, norm_window) if norm_window else nullcontext():
        done = label_sweeps(network, sweeps, out, columns=columns, form=form)
    unread = {fault.path for fault in done.failed}
    whole = [sweep for sweep in sweeps if sweep not in unread]
    shown = None
    if picture and whole:
        first = load_sweep(whole[0], columns=columns).points
        shown = draw_labels(first, label_path(out, whole[0]), form, network.classes)
    further = {"classes": list(network.classes), "picture": str(shown) if shown else None}
    return label_outcome(done, out, sweeps=len(sweeps), begin=begin, further=further)
