"""One training of the ablation and its tests, in a process of its own: ``python -m xd3d.pipeline.ablation.child``.

The task is one line of JSON on stdin. Stdin stays open: when it closes, the parent process has ended, and this process
exits too. The result is written to the file that the task names.
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

__all__ = ["SOURCE", "Task", "main", "run_task"]

SOURCE = "source"  #: key of the source domain's own test scores


@dataclass(frozen=True, kw_only=True)
class Task:
    """A preset with its overrides, the run folder's name, and the domains that the run is tested on, by name.

    ``init`` holds preset, overrides and run of the training that gives the initial weights.
    """

    preset: str
    overrides: list[str]
    run: str
    init: Mapping[str, Any] | None
    domains: Mapping[str, str]
    result: str


def main() -> None:
    """Reads the task from stdin, runs it and writes its result."""
    set_up_logging(verbose=False)
    task = Task(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    run_command_line(lambda: write_json(Path(task.result), run_task(Workspace.current(), task)))


def run_task(workspace: Workspace, task: Task) -> dict[str, Any]:
    """Trains the run of ``task``, or resumes it, and tests it; returns scores by domain name and the run's facts.

    Raises:
        Xd3dError: training or scoring failed.
    """
    begin = time.monotonic()
    overrides = [*task.overrides, *(_initialised(workspace, task, **task.init) if task.init else [])]
    done = jobs.train(workspace, task.preset, overrides, cached=True, run=Path(task.run)).result
    run = TrainedRun.open(workspace, Path(task.run), _machine_settings(task))
    scores = {name: _scores(run, domain, lidar_only=name != SOURCE) for name, domain in task.domains.items()}
    return {
        "scores": scores,
        "steps": done["steps"],
        "best": done["best"],
        "seconds": round(time.monotonic() - begin, 1),
        "code": run.record["code"],
        "features": next(iter(scores.values()))["features"],
    }


def _initialised(workspace: Workspace, task: Task, preset: str, overrides: list[str], run: str) -> list[str]:
    """Trains the initial run unless this is done; returns the settings that name it and its pseudo-labels if used."""
    jobs.train(workspace, preset, overrides, cached=True, run=Path(run))
    config = load_config(task.preset, task.overrides).config
    named = [f"train.init={json.dumps(run)}"]
    if config.train.lam_pl:
        domain, machine = config.data.target.domain, _machine_settings(task)
        made = pseudo_labels(workspace, Path(run), side=domain, machine=machine).result
        named.append(f"data.pseudo_labels={json.dumps(made['pseudo_labels'])}")
    return named


def _machine_settings(task: Task) -> list[str]:
    """The overrides of the task that concern this machine only, such as the device."""
    machine = marked(Config, Mark.MACHINE)
    return [text for text in task.overrides if text.partition("=")[0].strip() in machine]


def _scores(run: TrainedRun, domain: str, *, lidar_only: bool) -> dict[str, Any]:
    """Scores on the test split of ``domain``; with ``lidar_only`` the 3D score without any image too."""
    card = run.score(split="test", side=domain)
    return {
        "miou": {**card.miou, "3d_lidar_only": _lidar_only_score(run, domain, card) if lidar_only else None},
        "iou": card.iou,
        "points": card.points,
        "features": card.protocol.features if card.protocol else "none",
    }


def _lidar_only_score(run: TrainedRun, domain: str, card: "Metrics") -> float | None:
    """3D mIoU without images; None for a network that requires them."""
    if not run.config.fusion.image:
        return card.miou["3d"]
    if run.network.needs_images:
        return None
    return run.score(split="test", side=domain, absent=card.absent, lidar_only=True).miou["3d"]


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
