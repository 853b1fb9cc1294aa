"""The training loop: one backward pass a step, a checkpoint now and then, and an exact way back after any stop."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...cache.loader import made_ahead
from ...errors import RunError
from ...progress import progress
from ..datasets.frames import count_labels
from ..datasets.labels import class_weights
from ..evaluate.card import Modality
from ..evaluate.scores import score_frames
from .checkpoint import Best, TrainState, checkpoint_steps, load_state, read_best, save_checkpoint
from .checks import check_domains
from .domain import Domain
from .inference import predict_frames
from .log import RunLog
from .losses import Losses
from .network import Network
from .norms import hold_statistics, norm_momentum, set_norm_momentum
from .record import build_network, choose_device, make_record, open_record, write_record
from .settings import AugmentSettings, FusionSettings, ModelSettings, TrainSettings
from .shift import StepBatch, StepMaker, step_losses
from .start import Start

__all__ = ["TrainSummary", "learning_rate", "train"]

log = logging.getLogger(__name__)


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
    facts: Mapping[str, Any] | None = None,
) -> TrainSummary:
    """Train on ``source`` into the folder ``run``, validate on ``validation``; call it again to go on after a stop.

    Each step also takes a batch of ``target`` where it is given; its label files are not read. The run begins with the
    best weights of the run in the folder ``init``, where that is given, and with its class weights if it has no source.
    ``facts`` are further JSON values that identify the run (config name, domains, cache fingerprint): they are kept in
    ``run.json`` and must be the same when the run is resumed. The number of threads and the device may change.

    Raises:
        RunError: the folder belongs to a run with other settings, ``init`` to a run with another network; features
            are missing; or the loss is not finite.
        ConfigError: settings that contradict the data: an unknown tap, a batch larger than the domain.
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
    device = choose_device(settings.device)
    stored = open_record(run, record)
    done = checkpoint_steps(run)
    if done and done[-1] >= settings.steps:
        return TrainSummary(run=run, steps=done[-1], best=read_best(run, done[-1]))
    if start is not None:
        start.require_same_network(record)
    if stored is None:
        stored = {**record, "class_counts": _class_counts(source, start)}
        write_record(run, stored)
    with _seeded(settings.seed, device):
        network = build_network(stored, device)
        if start is not None and not done:
            start.load(network)
        weights = torch.tensor(class_weights(np.array(stored["class_counts"])), dtype=torch.float32, device=device)
        make = StepMaker(
            source=source, target=target, plan=network.plan, augment=augment, settings=settings, device=device
        )
        trainer = _Trainer(run, network, make, validation, settings, weights)
        return trainer.go_on(done[-1] if done else 0)


def _class_counts(source: Domain | None, start: Start | None) -> list[int]:
    """Points of each class in the source, or in that of the run that was started from."""
    if source is not None:
        counts = count_labels(source.index, [int(row) for row in source.frames], source.merge)
        return [int(count) for count in counts]
    return list(start.record["class_counts"]) if start is not None else []


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of ``step`` (from 0): ``lr``, a tenth of it after each milestone passed."""
    passed = sum(step >= milestone for milestone in settings.milestones)
    return settings.lr * 0.1**passed


class _Trainer:
    """A network on its way through the steps."""

    def __init__(
        self,
        run: Path,
        network: Network,
        make: StepMaker,
        validation: Domain | None,
        settings: TrainSettings,
        weights: torch.Tensor,
    ) -> None:
        self.run, self.network, self.settings, self.weights = run, network, settings, weights
        self.make, self.validation = make, validation
        self.best: Best | None = None
        optimiser = torch.optim.Adam(network.parameters(), lr=settings.lr)
        self.state = TrainState(network=network, optimiser=optimiser, device=network.device)

    def go_on(self, done: int) -> TrainSummary:
        """Train from ``done`` steps to the last."""
        if done:
            self.best = load_state(self.run, self.state, done)
            log.info("%s goes on from step %d", self.run, done)
        self.network.train()
        settings = self.settings
        with (
            RunLog(self.run, step=done, tensorboard=settings.tensorboard) as records,
            progress("train", settings.steps, "step", done) as bar,
            closing(made_ahead(self.make, range(done, settings.steps), settings.workers)) as batches,
        ):
            begin = time.perf_counter()
            for batch, waited in batches:
                step = done + 1
                losses = self._step(batch, step)
                seconds = time.perf_counter() - begin
                begin = time.perf_counter()
                rate = learning_rate(settings, done)
                records.write({"step": step, **losses, "lr": rate, "seconds": seconds, "wait": waited / seconds})
                bar.set_postfix(loss=f"{losses['loss']:.3f}", refresh=False)
                bar.update(1)
                if self._finish(step, records):
                    begin = time.perf_counter()
                done = step
        return TrainSummary(run=self.run, steps=done, best=self.best)

    def _step(self, batch: StepBatch, step: int) -> dict[str, float]:
        """One update; returns every loss by name, ``loss`` being their weighted sum.

        Reading the losses waits for the device, so the batch's memory may be used again afterwards.
        """
        for group in self.state.optimiser.param_groups:
            group["lr"] = learning_rate(self.settings, step - 1)
        set_norm_momentum(self.network, norm_momentum(step - 1))
        if self.settings.freeze_norms:
            hold_statistics(self.network)
        losses = step_losses(self.network, batch.to(self.network.device), self.weights, self.settings)
        values = _values(losses)
        if not np.isfinite(values["loss"]):
            terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            raise RunError(
                f"The loss is not finite at step {step} ({terms}); the batch held the frames {', '.join(batch.keys)}."
                f" Lower train.lr, or look at these frames; the last checkpoint in {self.run} is whole"
            )
        self.state.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.total)
        self.state.optimiser.step()
        return values

    def _finish(self, step: int, records: RunLog) -> bool:
        """Validate and save where ``step`` asks for it; whether it did."""
        settings = self.settings
        last = step == settings.steps
        validates = self.validation is not None and (last or step % settings.validate_every == 0)
        if self.validation is not None and validates:
            self._validate(self.validation, step, records)
        if not (validates or last or step % settings.checkpoint_every == 0):
            return False
        records.flush()
        save_checkpoint(self.run, self.state, step=step, best=self.best)
        return True

    def _validate(self, validation: Domain, step: int, records: RunLog) -> None:
        predictions = predict_frames(self.network, validation, workers=self.settings.workers, description="validate")
        card = score_frames(predictions, self.network.classes)
        records.write({"step": step, "validation": {"miou": card.miou, "iou": card.iou}})
        metric: Modality = "3d" if card.miou["xm"] is None else "xm"
        score = card.miou[metric]
        if score is not None and (self.best is None or score > self.best.miou):
            self.best = Best(step=step, metric=metric, miou=score)


def _values(losses: Losses) -> dict[str, float]:
    return {"loss": losses.total.item(), **{name: value.item() for name, value in losses.terms.items()}}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's generators for the run, and give them back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
