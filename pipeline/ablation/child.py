"""One training of the ablation and its tests, in a process of its own: ``python -m xd3d.pipeline.ablation.child``.

The task comes as one line of JSON on stdin, which stays open: when it closes, the parent is gone, and this process ends
too, however the parent died. The result is written to the file that the task names.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import write_json
from ...settings import Mark, marked
from .. import jobs
from ..config import Config, load_config
from ..console import run_command_line, set_up_logging
from ..pseudo import pseudo_labels
from ..runs import TrainedRun
from ..workspace import Workspace

if TYPE_CHECKING:
    from ...stages.evaluate.metrics import Metrics

__all__ = ["SOURCE", "Task", "main", "perform"]

SOURCE = "source"  #: the name that the source domain's own test scores go by


@dataclass(frozen=True, kw_only=True)
class Task:
    """A preset with its settings, the run folder's name, and the domains that the run is tested on, by name.

    ``start`` holds the same three of the run whose weights it begins with.
    """

    preset: str
    overrides: list[str]
    run: str
    start: Mapping[str, Any] | None
    domains: Mapping[str, str]
    result: str


def main() -> None:
    """Read the task from stdin, perform it and write its result."""
    set_up_logging(verbose=False)
    task = Task(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    run_command_line(lambda: write_json(Path(task.result), perform(Workspace.current(), task)))


def perform(workspace: Workspace, task: Task) -> dict[str, Any]:
    """Train, or go on with, the run of ``task`` and test it; the scores by the name of the domain, and the run's facts.

    Raises:
        Xd3dError: training or scoring failed.
    """
    begin = time.monotonic()
    overrides = [*task.overrides, *(_started(workspace, task, **task.start) if task.start else [])]
    done = jobs.train(workspace, task.preset, overrides, cached=True, run=Path(task.run)).result
    run = TrainedRun.open(workspace, Path(task.run), _machine(task))
    scores = {name: _scores(run, domain, bare=name != SOURCE) for name, domain in task.domains.items()}
    return {
        "scores": scores,
        "steps": done["steps"],
        "best": done["best"],
        "seconds": round(time.monotonic() - begin, 1),
        "code": run.record["code"],
        "features": next(iter(scores.values()))["features"],
    }


def _started(workspace: Workspace, task: Task, preset: str, overrides: list[str], run: str) -> list[str]:
    """Train the run to begin with where it is not trained yet; the settings that name it and, if wanted, its labels."""
    jobs.train(workspace, preset, overrides, cached=True, run=Path(run))
    config = load_config(task.preset, task.overrides).config
    named = [f"train.init={json.dumps(run)}"]
    if config.train.lam_pl:
        made = pseudo_labels(workspace, Path(run), side=config.data.target.domain, machine=_machine(task)).result
        named.append(f"data.pseudo_labels={json.dumps(made['pseudo_labels'])}")
    return named


def _machine(task: Task) -> list[str]:
    """The settings of this machine among those of the task."""
    machine = marked(Config, Mark.MACHINE)
    return [text for text in task.overrides if text.partition("=")[0].strip() in machine]


def _scores(run: TrainedRun, domain: str, *, bare: bool) -> dict[str, Any]:
    """Scores of ``run`` on the test split of ``domain``, and where ``bare`` once more without any image."""
    card = run.score(split="test", side=domain)
    return {
        "miou": {**card.miou, "3d_lidar_only": _without_images(run, domain, card) if bare else None},
        "iou": card.iou,
        "points": card.points,
        "features": card.protocol.features if card.protocol else "none",
    }


def _without_images(run: TrainedRun, domain: str, card: "Metrics") -> float | None:
    """The 3D score where no image is handed in; None for a network that cannot do without."""
    if not run.config.fusion.image:
        return card.miou["3d"]
    if run.network.needs_images:
        return None
    return run.score(split="test", side=domain, absent=card.absent, lidar_only=True).miou["3d"]


def _leave_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
