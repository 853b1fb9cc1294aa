"""The command ``predict``: labels for sweeps of no data set, or for the frames of one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import optional_path
from ..stages.evaluate.settings import Adaptation, FusionRule, norm_window
from .console import Outcome
from .label_forms import LabelIds
from .workspace import Workspace

__all__ = ["predict"]


def predict(
    points: Path | str | None = None,
    run: Path | str | None = None,
    *,
    dataset: str | None = None,
    root: Path | str | None = None,
    domain: str | None = None,
    split: str | None = None,
    scenes: str | None = None,
    online: bool = False,
    fusion: FusionRule | None = None,
    adapt: Adaptation = "none",
    probabilities: bool = False,
    submission: bool = False,
    out: Path | str | None = None,
    columns: int | None = None,
    ids: LabelIds = "train",
    colour: bool = False,
    picture: bool = False,
    dry_run: bool = False,
    machine: Sequence[str] = (),
    workspace: Workspace | Path | str | None = None,
) -> Outcome:
    """Labels LiDAR sweeps into files: ``points``, a sweep or a folder of them, or frames of ``dataset`` with images.

    The options are those of ``xd3d predict``; for arrays in memory see ``load_run``. The exit code is 1 if a sweep
    could not be read; the others are labelled.

    Examples:
        >>> done = xd3d.predict(dataset="nuscenes", split="test", run="first", out="labels")
        >>> done.result["modalities"]
        ['fused', 'xm', '3d', '2d']

    Raises:
        ConfigError: options contradict each other, or ``out`` holds other labels.
        CacheError: images have no cached features, and ``online`` is not set.
    """
    from .frame_choice import FrameChoice, choose_frames
    from .predict_frames import predict_frames
    from .predict_sweeps import predict as predict_sweeps

    frames_alone: dict[str, Any] = {
        "online": online,
        "fusion": fusion,
        "probabilities": probabilities,
        "dry_run": dry_run,
    }
    choice = choose_frames(
        optional_path(points),
        dataset,
        root=optional_path(root),
        domain=domain,
        split=split,
        scenes=scenes,
        submission=submission,
        sweeps_alone={"--columns": columns},
        frames_alone={f"--{name.replace('_', '-')}": value for name, value in frames_alone.items()},
    )
    shared: dict[str, Any] = {
        "out": optional_path(out),
        "picture": picture,
        "norm_window": norm_window(adapt),
        "ids": ids,
        "colour": colour,
        "machine": machine,
    }
    workspace, run = Workspace.of(workspace), optional_path(run)
    if isinstance(choice, FrameChoice):
        return predict_frames(workspace, run, choice, submission=submission, **frames_alone, **shared)
    return predict_sweeps(workspace, run, choice, columns=columns, **shared)
