"""Pseudo labels of a run: what its best network is sure of on the target's train split, kept in the workspace."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from .console import Outcome
from .runs import TrainedRun
from .workspace import Workspace

__all__ = ["pseudo_labels"]


def pseudo_labels(workspace: Workspace, run: Path | None = None) -> Outcome:
    """Predict the target's train split with both heads of a run, and keep what they are sure of; safe to call again.

    Raises:
        MissingDataError: there is no run, or no data of its target.
        RunError: the run has no checkpoint yet.
        DataError: a prediction is not finite.
    """
    from ..cache.fingerprint import fingerprint_digest
    from ..stages.evaluate.labelling import make_pseudo_labels
    from ..stages.train.inference import predict_frames
    from ..stages.train.record import describe_domain
    from ..stages.train.start import Start

    trained = TrainedRun.open(workspace, run)
    target, side = trained.domains.unlabelled_target(), trained.config.data.target
    uses_images = trained.config.fusion.image
    identity = {
        **Start.open(trained.folder).identity(),
        "features": fingerprint_digest(trained.domains.fingerprint(side.dataset)) if uses_images else "none",
        "domain": side.domain,
        "split": "train",
        "target": describe_domain(target),
    }
    folder = workspace.pseudo_labels(f"{trained.folder.name}-{fingerprint_digest(identity)[:8]}")
    made = make_pseudo_labels(
        folder,
        identity=identity,
        frames=len(target),
        classes=target.merge.classes,
        predict=lambda first: predict_frames(
            trained.network,
            replace(target, frames=target.frames[first:]),
            fusion=trained.config.evaluate.fusion,
            description="pseudo-label",
        ),
    )
    workspace.remember_pseudo_labels(folder)
    kept = {head: _share(made.facts["classes"][head]) for head in made.heads}
    shares = ", ".join(f"{100 * share:.0f} % of the {head.upper()} head's" for head, share in kept.items())
    return Outcome(
        result={"pseudo_labels": str(folder), "frames": made.frames, "points": made.points, "kept": kept},
        text=f"{made.points} points of {made.frames} frames are labelled: {shares} labels are kept, in {folder}."
        " Next: xd3d train with train.lam_pl above 0, such as --config nuscenes_usa_singapore/uda_pl",
    )


def _share(classes: dict[str, Any]) -> float:
    predicted = sum(counts["predicted"] for counts in classes.values())
    return sum(counts["kept"] for counts in classes.values()) / max(predicted, 1)
