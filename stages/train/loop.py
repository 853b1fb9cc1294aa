"""The training loop: steps, validation and checkpoints; a run that was stopped resumes exactly."""

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
from .initial import InitialCheckpoint
from .log import RunLog, past_losses
from .loggers import Pictures, require_loggers
from .monitor import CubeWatch, DivergenceWatch, StepTiming, Throughput
from .network import Network
from .optimise import Stepper, learning_rate
from .parallel import broadcast
from .record import build_network, make_record, open_record, write_record
from .settings import AugmentSettings, FusionSettings, ModelSettings, TrainSettings
from .step_batch import StepMaker
from .transfer import prefetch

__all__ = ["Score", "TrainSummary", "ValidationScores", "train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ValidationScores:
    """Scores of a validation: number of labelled ``points``, ``miou`` by modality, and ``iou`` by class and modality.

    The score of a modality that was not predicted is None; without labelled points both mappings are empty.
    """

    points: int
    miou: Mapping[str, float | None]
    iou: Mapping[str, Mapping[str, float | None]]


Score = Callable[[Network, Domain], ValidationScores]  #: scores a network on every frame of a domain
Draw = Callable[[Network, Domain], Pictures]  #: draws predictions of a few frames of a domain


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """Folder of the run, steps done, and the best validation (None if it was never validated)."""

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
    draw: Draw | None = None,
    metric: str = "fused",
    facts: Mapping[str, Any] | None = None,
    on_start: Callable[[], object] | None = None,
) -> TrainSummary:
    """Train on ``source`` into the folder ``run`` and validate on ``validation``; resumes a run that was stopped.

    With ``target``, each step also trains on a batch of it; its label files are not read. With ``init``, the run starts
    from the best checkpoint of the run in that folder, and uses its class weights if there is no source.
    ``score`` scores the network on ``validation`` and is required with it; ``draw`` draws the pictures of each
    validation that the loggers get. The best checkpoint has the highest mIoU of
    the modality ``metric``, or of "3d" if validation has no images.
    ``facts`` are further JSON values that identify the run (config name, domains, cache fingerprint): they are stored
    in ``run.json`` and must be the same when the run is resumed. The number of threads, the device and the sparse
    backend may change. ``on_start`` is called, by one process, as soon as the folder has its record.
    If several processes have joined (``distributed``), each calls this function and trains on its part of every batch.

    Raises:
        BackendError: the requested device or sparse backend is not available.
        RunError: a logger is not installed or does not open; the folder belongs to a run with other settings, or
            another process is training in it; ``init`` is a run with another network; features are missing; or the
            loss is not finite.
        ConfigError: the settings contradict the data: an unknown tap, a batch larger than the domain.
        CacheError: images of a domain have no features.
        DataError: no point of the source has a label.
    """
    require_loggers(settings.loggers)
    target = target.unlabelled() if target is not None else None
    initial = InitialCheckpoint.open(init) if init is not None else None
    taps = check_domains(
        source=source, target=target, validation=validation, initial=initial, fusion=fusion, settings=settings
    )
    record = make_record(
        model=model,
        fusion=fusion,
        augment=augment,
        settings=settings,
        source=source,
        target=target,
        validation=validation,
        init=initial.identity() if initial is not None else None,
        taps=taps,
        facts=facts or {},
    )
    device = select_device(settings.device, setting="train.device")
    lock = exclusive_lock(run, work="trains", option="--run")
    with lock if is_first_process() else nullcontext(), _seeded(settings.seed, device):
        stored, done = broadcast(_open_run(run, record, source, initial, on_start) if is_first_process() else ({}, 0))
        if done >= settings.steps:
            return TrainSummary(run=run, steps=done, best=read_best(run, done))
        network = build_network(stored, model=model, fusion=fusion, taps=taps, device=device)
        if initial is not None and not done:
            initial.load(network)
        weights = torch.tensor(class_weights(np.array(stored["class_counts"])), dtype=torch.float32, device=device)
        make = StepMaker(
            source=source, target=target, plan=network.plan, augment=augment, settings=settings, device=device
        )
        stepper = Stepper(network, weights, settings)
        return _Trainer(run, make, validation, settings, stepper, score, draw, metric).train(done)


def _open_run(
    run: Path,
    record: Mapping[str, Any],
    source: Domain | None,
    initial: InitialCheckpoint | None,
    on_start: Callable[[], object] | None,
) -> tuple[Mapping[str, Any], int]:
    """Returns the record of ``run``, which is written if the run is new, and the step of its last checkpoint."""
    stored = open_record(run, record)
    if initial is not None:
        initial.require_same_network(record)
    if stored is None:
        counts = _class_counts(source, initial)
        class_weights(np.array(counts))  # rejects a source without labels before anything is written
        stored = {**record, "class_counts": counts}
        write_record(run, stored)
    if on_start is not None:
        on_start()
    done = checkpoint_steps(run)
    return stored, done[-1] if done else 0


def _class_counts(source: Domain | None, initial: InitialCheckpoint | None) -> list[int]:
    """Returns the number of points of each class in the source, or in that of the initial checkpoint."""
    if source is not None:
        counts = count_labels(source.index, source.frames, source.merge, every_point=source.every_point)
        return [int(count) for count in counts]
    return list(initial.record["class_counts"]) if initial is not None else []


class _Trainer:
    """Trains the network of a run, and validates and saves it."""

    def __init__(
        self,
        run: Path,
        make: StepMaker,
        validation: Domain | None,
        settings: TrainSettings,
        stepper: Stepper,
        score: Score | None,
        draw: Draw | None,
        metric: str,
    ) -> None:
        self.run, self.make, self.validation, self.settings = run, make, validation, settings
        self.score, self.draw, self.metric = score, draw, metric
        self.network, self.stepper = stepper.network, stepper
        self.best: Best | None = None
        self.state = TrainState(network=stepper.network, optimiser=stepper.optimiser, scaler=stepper.scaler)

    def train(self, done: int) -> TrainSummary:
        """Train from step ``done`` to the last."""
        if done:
            self.best = load_state(self.run, self.state, done)
            log.info("%s resumes from step %d", self.run, done)
        self.network.train()
        settings, throughput, cube = self.settings, Throughput(), CubeWatch()
        watch = DivergenceWatch(past_losses(self.run, done))
        micro_batches = range(done * settings.accumulate, settings.steps * settings.accumulate)
        with (
            RunLog(self.run, step=done, loggers=settings.loggers) as records,
            progress("train", settings.steps, "step", done) as bar,
            closing(map_ahead(self.make, micro_batches, settings.workers)) as made,
            closing(prefetch(made, self.network.device)) as batches,
        ):
            for step in range(done + 1, settings.steps + 1):
                begin = time.perf_counter()
                result = self.stepper.step(step - 1, islice(batches, settings.accumulate))
                timing = StepTiming(
                    seconds=time.perf_counter() - begin,
                    waited=result.waited,
                    frames=result.frames,
                    points=result.points,
                )
                throughput.add(timing)
                cube.add(inside=result.points, outside=result.outside)
                rate = learning_rate(settings, step - 1)
                records.write({"step": step, **result.losses, "lr": rate, **timing.record()})
                if result.losses:
                    watch.check(step, result.losses["loss"])
                    bar.set_postfix({"loss": f"{result.losses['loss']:.3f}", **throughput.postfix()}, refresh=False)
                bar.update(1)
                self._finish(step, records)
        log.info(throughput.summary())
        if cube.summary():
            log.info(cube.summary())
        return TrainSummary(run=self.run, steps=settings.steps, best=self.best)

    def _finish(self, step: int, records: RunLog) -> None:
        """Validate and save if it is due after ``step``."""
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
            log.warning("No point of the validation frames has a label; the last checkpoint counts as the best")
            return
        pictures: Pictures = {}
        if self.draw is not None and self.validation is not None and self.settings.loggers and is_first_process():
            pictures = self.draw(self.network, self.validation)
        records.write({"step": step, "validation": {"miou": scores.miou, "iou": scores.iou}}, pictures)
        metric = self.metric if scores.miou["xm"] is not None else "3d"
        miou = scores.miou[metric]
        if miou is not None and (self.best is None or miou > self.best.miou):
            self.best = Best(step=step, metric=metric, miou=miou)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's generators for the run, and restore them afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
