"""A trained run, as evaluation, prediction and reports read it: settings, domains, network and scores."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64
from pydantic import ValidationError

from ..errors import ConfigError, DataError, RunError, nearest
from ..fingerprint import fingerprint_digest
from ..settings import Mark, marked, unmarked_values
from ..stages.datasets.index import FrameIndex
from ..stages.datasets.settings import DomainSettings
from ..stages.datasets.splits import EVERY_SPLIT, domain_frames, domain_names
from ..stages.evaluate.metrics import Metrics, ScoreProtocol
from ..stages.evaluate.scores import majority_miou, score_frames
from ..stages.evaluate.settings import AbsentRule, FusionRule, adaptation_name
from ..stages.train.domain import Domain
from .config import Config, ResolvedConfig, change_config
from .domains import DomainOpener
from .export import exported
from .workspace import Workspace

if TYPE_CHECKING:
    from ..stages.train.network import Network

__all__ = ["TrainedRun", "with_recorded_fusion", "run_facts", "run_name"]

log = logging.getLogger(__name__)

#: The fusion rule of a record that names none.
UNNAMED_RULE: FusionRule = "sum"


def run_facts(resolved: ResolvedConfig, *, cached: bool) -> dict[str, Any]:
    """Returns what a run records beside the settings of its network: enough to open its domains again.

    The location of its caches is recorded for later commands and may change.
    """
    values = unmarked_values(resolved.config, Mark.FREE)
    sections = {name: values[name] for name in ("data", "extract", "evaluate")}
    if sections["evaluate"]["fusion"] == UNNAMED_RULE:
        del sections["evaluate"]["fusion"]
    return {"config": resolved.name, "cached": cached, "caches": resolved.config.extract.caches, **sections}


def with_recorded_fusion(resolved: ResolvedConfig, run: Path) -> ResolvedConfig:
    """Returns ``resolved`` with the rule ``UNNAMED_RULE`` if the run in ``run`` records none.

    A rule that the user set is kept.
    """
    from ..stages.train.record import NAME, read_record

    if "evaluate.fusion" in resolved.origins or not (run / NAME).exists():
        return resolved
    if "fusion" in read_record(run)["facts"].get("evaluate", {"fusion"}):
        return resolved
    config = resolved.config
    evaluate = config.evaluate.model_copy(update={"fusion": UNNAMED_RULE})
    return replace(resolved, config=config.model_copy(update={"evaluate": evaluate}))


def run_name(
    resolved: ResolvedConfig,
    domains: DomainOpener,
    *,
    cached: bool,
    sides: Sequence[DomainSettings] | None = None,
) -> str:
    """Returns a name that follows from settings and data, so that an interrupted run is found again.

    ``sides`` are those that the run uses, by default those of training.
    """
    from ..stages.train.initial import InitialCheckpoint

    init, pseudo = domains.init(), domains.pseudo_labels()
    settings = unmarked_values(resolved.config, Mark.FREE)
    settings["model"]["backend"] = "auto"  # a setting of the machine; names still contain it
    identity = {
        "settings": settings,
        "cached": cached,
        "indexes": [domains.index(side.dataset).digest for side in sides or domains.sides()],
        "init": InitialCheckpoint.open(init).identity() if init else None,
        "pseudo_labels": pseudo.provenance() if pseudo else None,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{resolved.name.replace('/', '-')}-{digest[:8]}"


@dataclass(frozen=True)
class TrainedRun:
    """A run's folder and record; domains and network are opened on first use.

    ``machine``: overrides KEY=VALUE of machine settings (``Mark.MACHINE``). Without an override they have their
    defaults, whatever machine the run was trained on.
    """

    workspace: Workspace
    folder: Path
    record: Mapping[str, Any]
    machine: Sequence[str] = ()

    @classmethod
    def open(cls, workspace: Workspace, run: Path | None, machine: Sequence[str] = ()) -> "TrainedRun":
        """Opens ``run`` (a folder, or a name in the workspace), by default the last run.

        Raises:
            MissingDataError: nothing has been trained yet.
            RunError: the folder holds no run, or one of 'xd3d pretrain'.
        """
        from ..stages.train.record import PRETRAINED, read_record

        folder = workspace.last_run() if run is None else workspace.find_run(run)
        record = read_record(folder)
        if record.get("kind") == PRETRAINED:
            raise RunError(
                f"{folder} is a run of 'xd3d pretrain': its 3D network has no heads and predicts no classes. Train"
                f" from it: xd3d train --cached --set train.init={workspace.name_of(folder)}"
            )
        return cls(workspace, folder, record, machine)

    @cached_property
    def config(self) -> Config:
        """The settings that the run was trained with, and the machine settings.

        Raises:
            RunError: the record is incomplete, or of another version.
            ConfigError: ``machine`` holds other settings, or invalid values.
        """
        facts, machine = self.record["facts"], marked(Config, Mark.MACHINE)
        try:
            recorded = {name: facts[name] for name in ("data", "extract", "evaluate")}
            recorded |= {name: self.record[name] for name in ("model", "fusion", "augment", "train")}
            sections = {
                name: {key: value for key, value in values.items() if f"{name}.{key}" not in machine}
                for name, values in recorded.items()
            }
            sections["extract"]["caches"] = facts.get("caches")
            sections["evaluate"].setdefault("fusion", UNNAMED_RULE)
            config = Config.model_validate(sections)
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            raise RunError(
                f"{self.folder / 'run.json'} is damaged, of another version, or not of 'xd3d train' ({error!r}); train"
                " again in another folder"
            ) from error
        return change_config(config, self.machine, allowed=machine)

    @cached_property
    def domains(self) -> DomainOpener:
        """Opens the run's data and features."""
        return DomainOpener(self.workspace, self.config, cached=self.record["facts"]["cached"])

    @cached_property
    def network(self) -> "Network":
        """The best network, in evaluation mode; a warning is logged if the run is not finished."""
        from ..stages.train.record import load_network

        model, fusion, device = self.config.model, self.config.fusion, self.config.train.device
        network = load_network(self.folder, self.record, self.step, model=model, fusion=fusion, device=device)
        if self.reached < self.config.train.steps:
            log.warning("%s", self.progress)
        return network

    def side(self, name: str) -> DomainSettings:
        """Returns the source, the target, or another domain of the target's data set.

        Raises:
            ConfigError: the domain does not exist.
        """
        target = self.config.data.target
        known = domain_names(self.domains.index(target.dataset))
        others = {domain: target.model_copy(update={"domain": domain}) for domain in known}
        sides = {"source": self.config.data.source, "target": target, **others}
        if name not in sides:
            raise ConfigError(f"There is no domain '{name}'; {nearest(name, sides)}")
        return sides[name]

    @cached_property
    def step(self) -> int:
        """Training step of the best checkpoint at first access; later ones of a run in progress are not read.

        Raises:
            RunError: there is no checkpoint yet.
        """
        from ..stages.train.checkpoint import best_step

        return best_step(self.folder)

    @property
    def reached(self) -> int:
        """Training step of the last checkpoint.

        Raises:
            RunError: there is no checkpoint yet.
        """
        from ..stages.train.checkpoint import checkpoint_steps

        return max(checkpoint_steps(self.folder), default=0) or self.step

    @property
    def progress(self) -> str:
        """A sentence on which checkpoint is read and how far the run has come."""
        planned = self.config.train.steps
        rest = f"; the run has done {self.reached} of {planned} steps; the command that started it resumes it"
        return f"Run {self.folder.name}, weights of step {self.step}{rest if self.reached < planned else ''}"

    def require_lidar_only(self) -> None:
        """Checks that the run's 3D head predicts without a camera.

        Raises:
            RunError: it reads features that were refined with the image's agents.
        """
        if self.config.fusion.needs_images:
            raise RunError(
                f"The 3D head of {self.folder} reads features that the image's agents refined (fusion.head=refine), and"
                " so needs a camera; train one that does not: xd3d train --cached --set fusion.head=distil"
            )

    def require_adaptable(self, norm_window: int | None) -> None:
        """Checks that the network can be adapted, if there is a ``norm_window``.

        Raises:
            RunError: it has no BatchNorm.
        """
        from ..stages.predict.adapted_norms import batch_norms

        if norm_window:
            batch_norms(self.network)

    def scores_path(self, side: str, split: str, *, lidar_only: bool = False, norm_window: int | None = None) -> Path:
        """Returns the file of the scores of one side and split, with images or not, and with or without adaptation."""
        form = [*(["lidar-only"] if lidar_only else []), *([adaptation_name(norm_window)] if norm_window else [])]
        return self.folder / "scores" / f"{'-'.join([side, split, *form])}.json"

    def domain(self, side: str, split: str, *, lidar_only: bool = False) -> Domain:
        """Returns the frames of one side and split, with their features unless ``lidar_only``."""
        return self.domains.open(self.side(side), split, images=not lidar_only)

    def score(
        self,
        *,
        split: str | None = None,
        side: str = "target",
        absent: AbsentRule | None = None,
        fusion: FusionRule | None = None,
        lidar_only: bool = False,
        norm_window: int | None = None,
        export: Path | None = None,
    ) -> Metrics:
        """Predicts all points of a split, scores them, and stores the score with its protocol.

        ``absent`` and ``fusion`` default to the run's settings. With ``lidar_only`` only the 3D head is scored, on the
        same points and without image features. With a ``norm_window``, BatchNorm is adapted to so many frames of the
        split (``adapted_norms``). With ``export`` the predictions are written to that folder in the data
        set's official format; of a split without labels too, which has no score to store.

        Raises:
            ConfigError: unknown domain or split, or ``export`` cannot take these predictions.
            DataError: the split has no frames, or no labels and ``export`` is not given.
            RunError: the run has no checkpoint yet, its 3D head needs images and ``lidar_only`` is set, or its network
                has no BatchNorm and ``norm_window`` is given.
        """
        from ..stages.predict.inference import predict_frames

        if lidar_only:
            self.require_lidar_only()
        self.require_adaptable(norm_window)
        split = split or self.config.evaluate.split
        index, part = self.domains.index(self.side(side).dataset), self.side(side).domain
        if export is None:
            _require_labels(index, domain_frames(index, part, EVERY_SPLIT), f"of '{side}'")
        domain = self.domain(side, split, lidar_only=lidar_only)
        if export is None:
            _require_labels(index, domain.frames, f"of split '{split}' of '{side}'")
        path = self.scores_path(side, split, lidar_only=lidar_only, norm_window=norm_window)
        path.parent.mkdir(exist_ok=True)
        rule = fusion or self.config.evaluate.fusion
        predictions = predict_frames(
            self.network, domain, fusion=rule, norm_window=norm_window, description=f"evaluate {side} {split}"
        )
        if export is not None:
            predictions = exported(self, domain, predictions, export, fusion=rule, norm_window=norm_window)
        card = score_frames(
            predictions,
            self.network.classes,
            absent=absent or self.config.evaluate.absent,
            protocol=self._protocol(side, split, domain, rule, norm_window),
        )
        if index.has_labels(domain.frames):
            card.save(path)
        return card

    def majority(self, card: Metrics) -> float:
        """Returns the mean IoU on the points of ``card`` of always predicting the most frequent training class."""
        counts = np.array(self.record["class_counts"])
        return majority_miou(counts, card.confusion["3d"].sum(axis=1), card.absent)

    def _protocol(self, side: str, split: str, domain: Domain, fusion: FusionRule, norm_window: int | None) -> Any:
        settings, dataset = self.config, self.side(side).dataset
        return ScoreProtocol(
            dataset=dataset,
            index=domain.index.digest,
            cameras=domain.index.cameras,
            domain=self.side(side).domain,
            split=split,
            merge=settings.data.merge,
            checkpoint=str(self.folder),
            step=self.step,
            reached=self.reached,
            planned=settings.train.steps,
            seed=settings.train.seed,
            features=fingerprint_digest(self.domains.fingerprint(dataset)) if domain.features else "none",
            head=settings.fusion.head,
            fusion=fusion,
            adapt=adaptation_name(norm_window),
        )


def _require_labels(index: FrameIndex, rows: Int64[np.ndarray, "rows"], what: str) -> None:
    """Checks that one of the frames in ``rows`` has labels to score."""
    if not index.has_labels(rows):
        raise DataError(
            f"The {len(rows)} frames {what} have no labels to score ({index.dataset} in {index.root}); write"
            f" predictions of them with --export DIR, or with: xd3d predict --dataset {index.dataset}"
        )
