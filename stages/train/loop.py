"""The training loop: step after step, a checkpoint now and then, and an exact way back after any stop."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...locks import exclusive_lock
from ...prefetch import map_ahead
from ...processes import is_first_process, select_device
from ...progress import progress
from ..datasets.frames import count_labels
from ..datasets.labels import class_weights
from .checkpoint import Best, TrainState, checkpoint_steps, load_state, read_best, save_checkpoint
from .checks import check_domains
from .domain import Domain
from .log import RunLog, past_losses
from .network import Network
from .optimise import Stepper, learning_rate
from .pace import Pace, StepPace
from .parallel import from_first
from .record import build_network, make_record, open_record, write_record
from .settings import AugmentSettings, FusionSettings, ModelSettings, TrainSettings
from .shift import StepMaker
from .start import Start
from .transfer import prefetch
from .watch import DivergenceWatch

__all__ = ["Score", "TrainSummary", "ValidationScores", "train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ValidationScores:
    """Scores of a validation: labelled ``points``, and ``miou`` and per-class ``iou`` by modality, where there are any.

    The score of a modality that was not predicted is None.
    """

    points: int
    miou: Mapping[str, float | None]
    iou: Mapping[str, Mapping[str, float | None]]


Score = Callable[[Network, Domain], ValidationScores]  #: scores a network on every frame of a domain


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """Where the run is, the steps it has done, and the best validation (None where nothing was validated)."""

    run: Path
    steps: int
    best: Best | None


def train(
    *,
    run: Path,
    source: Domain | None,
    validation: Domain | None,
    model: ModelSettings,
    fusion: FusionSettings,
    augment: AugmentSettings,
    settings: TrainSettings,
    target: Domain | None = None,
    init: Path | None = None,
    score: Score | None = None,
    metric: str = "fused",
    facts: Mapping[str, Any] | None = None,
    begun: Callable[[], object] | None = None,
) -> TrainSummary:
    """Train on ``source`` into the folder ``run``, validate on ``validation``; call it again to go on after a stop.

    Each step also takes a batch of ``target`` where it is given; its label files are not read. The run begins with the
    best weights of the run in the folder ``init``, where that is given, and with its class weights if it has no source.
    ``score`` is called with the network and ``validation``, which needs it. The best checkpoint has the highest mIoU of
    the modality ``metric``, or of "3d" where validation has no images.
    ``facts`` are further JSON values that identify the run (config name, domains, cache fingerprint): they are kept in
    ``run.json`` and must be the same when the run is resumed. The number of threads, the device and the sparse backend
    may change. ``begun`` is called, by one process, as soon as the folder is the run's.
    Of several processes that have joined each other (``distributed``) every one calls this, and each takes its part of
    every batch.

    Raises:
        BackendError: the device or the sparse backend that is asked for is not here.
        RunError: the folder belongs to a run with other settings, or is being trained in; ``init`` belongs to a run
            with another network; features are missing; or the loss is not finite.
        ConfigError: settings that contradict the data: an unknown tap, a batch larger than the domain.
        CacheError: images of a domain have no features.
        DataError: not one point of the source has a label.
    """
    target = target.unlabelled() if target is not None else None
    start = Start.open(init) if init is not None else None
    taps = check_domains(
        source=source, target=target, validation=validation, start=start, fusion=fusion, settings=settings
    )
    record = make_record(
        model=model,
        fusion=fusion,
        augment=augment,
        settings=settings,
        source=source,
        target=target,
        validation=validation,
        init=start.identity() if start is not None else None,
        taps=taps,
        facts=facts or {},
    )
    device = select_device(settings.device, setting="train.device")
    alone = exclusive_lock(run, work="trains", option="--run")
    with alone if is_first_process() else nullcontext(), _seeded(settings.seed, device):
        stored, done = from_first(_begin(run, record, source, start, begun) if is_first_process() else ({}, 0))
        if done >= settings.steps:
            return TrainSummary(run=run, steps=done, best=read_best(run, done))
        network = build_network(stored, model=model, fusion=fusion, taps=taps, device=device)
        if start is not None and not done:
            start.load(network)
        weights = torch.tensor(class_weights(np.array(stored["class_counts"])), dtype=torch.float32, device=device)
        make = StepMaker(
            source=source, target=target, plan=network.plan, augment=augment, settings=settings, device=device
        )
        stepper = Stepper(network, weights, settings)
        return _Trainer(run, make, validation, settings, stepper, score, metric).go_on(done)


def _begin(
    run: Path,
    record: Mapping[str, Any],
    source: Domain | None,
    start: Start | None,
    begun: Callable[[], object] | None,
) -> tuple[Mapping[str, Any], int]:
    """The record of ``run``, written if it is new, and the steps that its last checkpoint has done."""
    stored = open_record(run, record)
    if start is not None:
        start.require_same_network(record)
    if stored is None:
        counts = _class_counts(source, start)
        class_weights(np.array(counts))  # refuses a source without labels before the folder is the run's
        stored = {**record, "class_counts": counts}
        write_record(run, stored)
    if begun is not None:
        begun()
    done = checkpoint_steps(run)
    return stored, done[-1] if done else 0


def _class_counts(source: Domain | None, start: Start | None) -> list[int]:
    """Points of each class in the source, or in that of the run that was started from."""
    if source is not None:
        counts = count_labels(source.index, source.frames, source.merge, every_point=source.every_point)
        return [int(count) for count in counts]
    return list(start.record["class_counts"]) if start is not None else []


class _Trainer:
    """A network on its way through the steps."""

    def __init__(
        self,
        run: Path,
        make: StepMaker,
        validation: Domain | None,
        settings: TrainSettings,
        stepper: Stepper,
        score: Score | None,
        metric: str,
    ) -> None:
        self.run, self.make, self.validation, self.settings = run, make, validation, settings
        self.score, self.metric = score, metric
        self.network, self.stepper = stepper.network, stepper
        self.best: Best | None = None
        self.state = TrainState(network=stepper.network, optimiser=stepper.optimiser, scaler=stepper.scaler)

    def go_on(self, done: int) -> TrainSummary:
        """Train from ``done`` steps to the last."""
        if done:
            self.best = load_state(self.run, self.state, done)
            log.info("%s goes on from step %d", self.run, done)
        self.network.train()
        settings, pace = self.settings, Pace()
        watch = DivergenceWatch(past_losses(self.run, done))
        turns = range(done * settings.accumulate, settings.steps * settings.accumulate)
        with (
            RunLog(self.run, step=done, tensorboard=settings.tensorboard, wandb=settings.wandb) as records,
            progress("train", settings.steps, "step", done) as bar,
            closing(map_ahead(self.make, turns, settings.workers)) as made,
            closing(prefetch(made, self.network.device)) as batches,
        ):
            for step in range(done + 1, settings.steps + 1):
                begin = time.perf_counter()
                did = self.stepper.step(step - 1, islice(batches, settings.accumulate))
                took = StepPace(
                    seconds=time.perf_counter() - begin, waited=did.waited, frames=did.frames, points=did.points
                )
                pace.add(took)
                rate = learning_rate(settings, step - 1)
                records.write({"step": step, **did.losses, "lr": rate, **took.record()})
                if did.losses:
                    watch.check(step, did.losses["loss"])
                    bar.set_postfix({"loss": f"{did.losses['loss']:.3f}", **pace.postfix()}, refresh=False)
                bar.update(1)
                self._finish(step, records)
        log.info(pace.summary())
        return TrainSummary(run=self.run, steps=settings.steps, best=self.best)

    def _finish(self, step: int, records: RunLog) -> None:
        """Validate and save where ``step`` asks for it."""
        settings = self.settings
        last = step == settings.steps
        validates = self.validation is not None and (last or step % settings.validate_every == 0)
        if self.validation is not None and self.score is not None and validates:
            self._validate(self.score(self.network, self.validation), step, records)
        if is_first_process() and (validates or last or step % settings.checkpoint_every == 0):
            records.flush()
            save_checkpoint(self.run, self.state, step=step, best=self.best)

    def _validate(self, scores: ValidationScores, step: int, records: RunLog) -> None:
        if not scores.points:
            log.warning("Not one point of the validation frames has a label; the last checkpoint counts as the best")
            return
        records.write({"step": step, "validation": {"miou": scores.miou, "iou": scores.iou}})
        metric = self.metric if scores.miou["xm"] is not None else "3d"
        miou = scores.miou[metric]
        if miou is not None and (self.best is None or miou > self.best.miou):
            self.best = Best(step=step, metric=metric, miou=miou)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's generators for the run, and give them back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
