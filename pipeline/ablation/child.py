"""One training of the ablation and its tests, in a process of its own, which ends when the parent process ends."""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import write_json
from ...settings import Mark, marked
from ...stages.evaluate.metrics import Metrics
from .. import jobs
from ..config import Config
from ..console import run_command_line, set_up_logging
from ..pseudo_labels import pseudo_label
from ..runs import TrainedRun
from ..workspace import Workspace
from .plan import Training

__all__ = ["SOURCE", "is_trained", "run_child", "run_training"]

SOURCE = "source"  #: key of the source domain's own test scores


def run_child(workspace: Workspace, training: Training, domains: Mapping[str, str], *, result: Path, log: Path) -> None:
    """Writes the return value of ``run_training`` to ``result``, and all output to ``log``; for a new process."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    set_up_logging(verbose=False)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    run_command_line(lambda: write_json(result, run_training(workspace, training, domains)))


def run_training(workspace: Workspace, training: Training, domains: Mapping[str, str]) -> dict[str, Any]:
    """Trains a run, or resumes it, and tests it on ``domains``; returns scores by domain name and the run's facts.

    Raises:
        Xd3dError: training or scoring failed.
    """
    begin = time.monotonic()
    window = training.variant.norm_window
    trained = training.init if window and training.init else training
    overrides = [*trained.overrides, *(_initialised(workspace, trained, trained.init) if trained.init else [])]
    done = jobs.train(trained.variant.preset, overrides, cached=True, run=Path(trained.run), workspace=workspace).result
    run = TrainedRun.open(workspace, Path(trained.run), _machine_settings(training))
    scores = {name: _scores(run, domain, window, lidar_only=name != SOURCE) for name, domain in domains.items()}
    return {
        "scores": scores,
        "steps": done["steps"],
        "best": done["best"],
        "seconds": round(time.monotonic() - begin, 1),
        "code": run.record["code"],
        "features": next(iter(scores.values()))["features"],
    }


def is_trained(workspace: Workspace, training: Training) -> bool:
    """Returns whether the run of a training has its last checkpoint: others may start from it."""
    from ...stages.train.checkpoint import checkpoint_steps

    return training.resolved.config.train.steps in checkpoint_steps(workspace.run(training.run))


def _initialised(workspace: Workspace, training: Training, init: Training) -> list[str]:
    """Trains the initial run unless this is done; returns the settings that name it and its pseudo-labels if used."""
    run, config = Path(init.run), training.resolved.config
    if not is_trained(workspace, init):
        run_job = jobs.pretrain if init.variant.pretrains else jobs.train
        run_job(init.variant.preset, init.overrides, cached=True, run=run, workspace=workspace)
    named = [f"train.init={json.dumps(init.run)}"]
    if config.train.stored_labels:
        made = pseudo_label(
            run,
            side=config.data.target.domain,
            agree=config.train.pl_agree,
            vote=config.train.pl_vote,
            machine=_machine_settings(training),
            workspace=workspace,
        ).result
        named.append(f"data.pseudo_labels={json.dumps(made['pseudo_labels'])}")
    return named


def _machine_settings(training: Training) -> list[str]:
    """The overrides that concern this machine only, such as the device."""
    machine = marked(Config, Mark.MACHINE)
    return [text for text in training.overrides if text.partition("=")[0].strip() in machine]


def _scores(run: TrainedRun, domain: str, window: int | None, *, lidar_only: bool) -> dict[str, Any]:
    """Scores on the test split of ``domain``; with ``lidar_only`` the 3D score without any image too."""
    card = run.score(split="test", side=domain, norm_window=window)
    return {
        "miou": {**card.miou, "3d_lidar_only": _lidar_only_score(run, domain, card, window) if lidar_only else None},
        "iou": card.iou,
        "points": card.points,
        "features": card.protocol.features if card.protocol else "none",
    }


def _lidar_only_score(run: TrainedRun, domain: str, card: Metrics, window: int | None) -> float | None:
    """3D mIoU without images; None for a network that requires them."""
    if not run.config.fusion.image:
        return card.miou["3d"]
    if run.network.needs_images:
        return None
    alone = run.score(split="test", side=domain, absent=card.absent, lidar_only=True, norm_window=window)
    return alone.miou["3d"]


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
