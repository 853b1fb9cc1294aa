"""Pseudo labels of a run: what its best network is sure of on the target's train split, kept in the workspace."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import optional_path
from ..fingerprint import fingerprint_digest
from ..stages.adapt.pseudo_labels import candidates, make_pseudo_labels
from ..stages.evaluate.scores import FramePrediction
from ..stages.evaluate.settings import FusionRule
from ..stages.train.domain import Domain
from ..stages.train.pseudo_label_choice import Candidates, LabelRule
from ..stages.train.settings import TrainSettings
from .config import Config
from .console import Outcome
from .runs import TrainedRun
from .workspace import Workspace

if TYPE_CHECKING:
    from ..stages.train.batch import Batch
    from ..stages.train.network import Network

__all__ = ["batch_candidates", "pseudo_label"]


def pseudo_label(
    run: Path | str | None = None,
    *,
    side: str = "target",
    agree: bool = False,
    vote: bool = False,
    machine: Sequence[str] = (),
    workspace: Workspace | Path | str | None = None,
) -> Outcome:
    """Predicts the target's train split with a run (default: the last) and keeps confident labels; safe to call again.

    The label of both heads is the class of the fused prediction. If the run's rule is ``sum``, as in runs of earlier
    versions, each head gets the class that it predicts itself, as published.

    Args:
        run: a folder or a name.
        side: target, or another domain of its data set.
        agree: keep only labels on which the heads agree.
        vote: keep only labels that most points of the same object agent have.
        machine: settings of this machine, such as ``["train.device=cpu"]``.
        workspace: its folder; by default ``XD3D_HOME``, or ``xd3d-work`` in the working directory.

    Examples:
        >>> done = xd3d.pseudo_label("first")
        >>> done.result["frames"] > 0
        True

    Raises:
        MissingDataError: there is no run, or no data of its target.
        RunError: the run has no checkpoint yet.
        ConfigError: the network lacks what the rule compares.
        DataError: a prediction is not finite.
    """
    from ..stages.train.checks import check_label_rule

    workspace = Workspace.of(workspace)
    trained = TrainedRun.open(workspace, optional_path(run), machine)
    rule = LabelRule(agree=agree, vote=vote)
    check_label_rule(rule, trained.config.fusion)
    target = trained.domains.unlabelled(trained.side(side))
    identity = _identity(trained, side, target, rule)
    folder = workspace.pseudo_labels(f"{trained.folder.name}-{fingerprint_digest(identity)[:8]}")
    made = make_pseudo_labels(
        folder,
        identity=identity,
        frames=len(target),
        classes=target.merge.classes,
        predict=lambda first: _predictions(trained, replace(target, frames=target.frames[first:])),
        rule=rule,
    )
    workspace.remember_pseudo_labels(folder)
    kept = {head: _share(made.facts["classes"][head]) for head in made.heads}
    changes = " ".join(f"--set {change}" for change in _changes(trained.config.train, rule))
    shares = ", ".join(f"{100 * share:.0f} % of the {head.upper()} head's" for head, share in kept.items())
    return Outcome(
        result={"pseudo_labels": str(folder), "frames": made.frames, "points": made.points, "kept": kept},
        text=f"{made.points} points of {made.frames} frames are labelled: {shares} labels are kept, in {folder}."
        f" Next: xd3d train --cached with the --config and --set of this run and: {changes}",
    )


def _changes(train: TrainSettings, rule: LabelRule) -> list[str]:
    """Returns the settings that a run with the settings ``train`` needs to learn from stored labels by ``rule``."""
    rules = {name: (holds, getattr(train, f"pl_{name}")) for name, holds in vars(rule).items()}
    return [
        "train.lam_pl=1",
        *(["train.teacher=stored"] if train.teacher != "stored" else []),
        *(f"train.pl_{name}={str(holds).lower()}" for name, (holds, held) in rules.items() if holds or held),
    ]


def _identity(trained: TrainedRun, side: str, target: Domain, rule: LabelRule) -> dict[str, Any]:
    """Returns what pseudo labels follow from: the weights, the features, the frames and the rule."""
    from ..stages.train.initial import InitialCheckpoint
    from ..stages.train.record import describe_domain

    chosen, fusion = trained.side(side), trained.config.evaluate.fusion
    uses_images = target.features is not None
    return {
        **InitialCheckpoint.open(trained.folder).identity(),
        "features": fingerprint_digest(trained.domains.fingerprint(chosen.dataset)) if uses_images else "none",
        "domain": chosen.domain,
        "split": "train",
        **({} if fusion == "sum" else {"fusion": fusion}),
        **({"rule": rule.names} if rule.names else {}),
        "target": describe_domain(target),
    }


def _predictions(trained: TrainedRun, target: Domain) -> Iterator[FramePrediction]:
    from ..stages.predict.inference import predict_frames

    rule = trained.config.evaluate.fusion
    for found in predict_frames(trained.network, target, fusion=rule, description="pseudo-label"):
        yield _to_learn(found, rule)


def _to_learn(found: FramePrediction, fusion: FusionRule) -> FramePrediction:
    """Returns a prediction without the fused one if ``fusion`` is "sum", with which each head learns its own."""
    return replace(found, probabilities_fused=None) if fusion == "sum" else found


def batch_candidates(config: Config, network: "Network", batch: "Batch") -> Candidates:
    """Returns the pseudo labels that a teacher of a run with ``config`` proposes for the points of a batch."""
    from ..stages.predict.inference import predict_batch

    fusion, settings = config.evaluate.fusion, config.train
    found = _to_learn(predict_batch(network, batch, fusion=fusion), fusion)
    rule = LabelRule(agree=settings.pl_agree, vote=settings.pl_vote)
    return candidates(found, rule, what=f"of {', '.join(batch.keys)}")


def _share(classes: dict[str, Any]) -> float:
    predicted = sum(counts["predicted"] for counts in classes.values())
    return sum(counts["kept"] for counts in classes.values()) / max(predicted, 1)
