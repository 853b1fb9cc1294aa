"""The training loop: steps, validation and checkpoints; a run that was stopped resumes exactly."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError
from ...locks import exclusive_lock
from ...prefetch import map_ahead
from ...processes import is_first_process, select_device
from ...progress import progress
from ..datasets.frames import count_labels
from ..datasets.labels import class_weights
from .checkpoint import Best, TrainState, checkpoint_steps, load_state, read_best, save_checkpoint
from .checks import check_domains, check_settings
from .device_transfer import prefetch
from .domain import Domain
from .initial import InitialCheckpoint
from .loggers import Pictures, require_loggers
from .monitor import CubeWatch, DivergenceWatch, StepTiming, Throughput
from .network import Network
from .optimise import Stepper, learning_rate
from .parallel import broadcast
from .record import build_network, make_record, open_record, write_record
from .run_log import RunLog, past_losses
from .settings import AugmentSettings, FusionSettings, ModelSettings, TrainSettings
from .step_batch import StepMaker
from .teacher import Label, Teacher

__all__ = ["Score", "TrainSummary", "Trainer", "ValidationScores", "open_run", "run_session", "train"]

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
    label: Label | None = None,
    draw: Draw | None = None,
    metric: str = "fused",
    facts: Mapping[str, Any] | None = None,
    on_start: Callable[[], object] | None = None,
) -> TrainSummary:
    """Trains on ``source`` into the folder ``run`` and validates on ``validation``; resumes a run that was stopped.

    With ``target``, each step also trains on a batch of it; its label files are not read. With ``init``, the run starts
    from the best checkpoint of the run in that folder, and uses its class weights if there is no source; from a run of
    ``pretrain``, only the 3D network without its heads is loaded. ``score`` scores the network on ``validation`` and is
    required with it; ``draw`` draws the pictures that loggers get. The best checkpoint has the highest mIoU of the
    modality ``metric``, or of "3d" if validation has no images. ``settings.teacher`` "ema" requires ``label``, which
    predicts the labels of a batch. ``facts`` are further JSON values that identify the run: they are stored in
    ``run.json`` and must be the same when the run is resumed; threads, device and sparse backend may change.
    ``on_start`` is called, by one process, when the folder has its record. All processes of ``distributed`` call this.

    Raises:
        BackendError: the requested device or sparse backend is not available.
        RunError: a logger is not installed; the folder belongs to a run with other settings, or another process trains
            in it; ``init`` is a run with another network; features are missing; or the loss is not finite.
        ConfigError: the settings contradict the data: an unknown tap, a batch larger than the domain.
        CacheError: images of a domain have no features.
        DataError: no point of the source has a label.
    """
    require_loggers(settings.loggers)
    target = target.unlabelled() if target is not None else None
    initial = InitialCheckpoint.open(init) if init else None
    check_settings(source=source, target=target, initial=initial, fusion=fusion, settings=settings)
    taps = check_domains(source=source, target=target, validation=validation, fusion=fusion, settings=settings)
    record = make_record(
        model=model,
        fusion=fusion,
        augment=augment,
        settings=settings,
        source=source,
        target=target,
        validation=validation,
        init={**initial.identity(), "micro_batches": initial.micro_batches} if initial else None,
        taps=taps,
        facts=facts or {},
    )
    if initial:
        initial.require_same_network(record)
    device = select_device(settings.device, setting="train.device")
    with run_session(run, settings.seed, device):
        stored, done = open_run(run, record, lambda: _class_counts(source, initial), on_start)
        if done >= settings.steps:
            return TrainSummary(run=run, steps=done, best=read_best(run, done))
        network = build_network(stored, model=model, fusion=fusion, taps=taps, device=device)
        if initial is not None:
            initial = _load_initial(initial, network, stored, done)
        plan = network.plan
        make = StepMaker(source=source, target=target, plan=plan, augment=augment, settings=settings, device=device)
        stepper = _make_stepper(network, stored["class_counts"], settings, label, initial)
        validate = partial(score, network, validation) if score is not None and validation is not None else None
        pictures = partial(draw, network, validation) if draw is not None and validation is not None else None
        return Trainer(run, make, settings, stepper, validate, pictures, metric).train(done)


def _load_initial(
    initial: InitialCheckpoint, network: Network, stored: Mapping[str, Any], done: int
) -> InitialCheckpoint:
    """Returns the checkpoint that the run began from; it is loaded if no step is done.

    By now its run may have later checkpoints, and each process may find another one the best.
    """
    initial = replace(initial, step=stored["init"]["step"])
    if not done:
        initial.load(network)
    return initial


def _make_stepper(
    network: Network,
    class_counts: Sequence[int],
    settings: TrainSettings,
    label: Label | None,
    initial: InitialCheckpoint | None,
) -> Stepper:
    weights = torch.tensor(class_weights(np.array(class_counts)), dtype=torch.float32, device=network.device)
    teacher = None
    if settings.teacher == "ema":
        if label is None:
            raise ConfigError("train.teacher=ema labels each batch of the target: pass label")
        teacher = Teacher(network, label, settings.teacher_decay)
    return Stepper(
        network,
        weights,
        settings,
        backbone_rate=settings.backbone_rate,
        teacher=teacher,
        micro_batches=initial.micro_batches if initial is not None else 0,
    )


@contextmanager
def run_session(run: Path, seed: int, device: torch.device) -> Iterator[None]:
    """Locks the folder of a run against other processes that train, and seeds PyTorch's generators meanwhile."""
    lock = exclusive_lock(run, work="trains", option="--run")
    devices = [device] if device.type == "cuda" else []
    with lock if is_first_process() else nullcontext(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def open_run(
    run: Path,
    record: Mapping[str, Any],
    class_counts: Callable[[], list[int]],
    on_start: Callable[[], object] | None,
) -> tuple[Mapping[str, Any], int]:
    """Returns the record of ``run``, which is written if the run is new, and the step of its last checkpoint.

    The first process opens the run; all get what it found.
    """
    if not is_first_process():
        return broadcast(({}, 0))
    stored = open_record(run, record)
    if stored is None:
        stored = {**record, "class_counts": class_counts()}
        write_record(run, stored)
    if on_start is not None:
        on_start()
    done = checkpoint_steps(run)
    return broadcast((stored, done[-1] if done else 0))


def _class_counts(source: Domain | None, initial: InitialCheckpoint | None) -> list[int]:
    """Returns the number of points of each class in the source, or in that of the initial checkpoint."""
    counts = list(initial.record["class_counts"]) if initial is not None else []
    if source is not None:
        found = count_labels(source.index, source.frames, source.merge, every_point=source.every_point)
        counts = [int(count) for count in found]
    class_weights(np.array(counts))  # rejects a source without labels before anything is written
    return counts


class Trainer:
    """Trains the network of a run, and validates and saves it.

    ``validate`` scores the network; without it the run has no best checkpoint. ``draw`` draws pictures for the loggers.
    """

    def __init__(
        self,
        run: Path,
        make: StepMaker,
        settings: TrainSettings,
        stepper: Stepper,
        validate: Callable[[], ValidationScores] | None = None,
        draw: Callable[[], Pictures] | None = None,
        metric: str = "3d",
    ) -> None:
        self.run, self.make, self.settings = run, make, settings
        self.validate, self.draw, self.metric = validate, draw, metric
        self.network, self.stepper = stepper.network, stepper
        self.best: Best | None = None
        self.state = TrainState(
            network=stepper.network, optimiser=stepper.optimiser, scaler=stepper.scaler, teacher=stepper.teacher
        )

    def train(self, done: int) -> TrainSummary:
        """Trains from step ``done`` to the last."""
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
        """Validates and saves if it is due after ``step``."""
        settings = self.settings
        last = step == settings.steps
        validates = self.validate is not None and (last or step % settings.validate_every == 0)
        if self.validate is not None and validates:
            self._record_validation(self.validate(), step, records)
        if is_first_process() and (validates or last or step % settings.checkpoint_every == 0):
            records.flush()
            save_checkpoint(self.run, self.state, step=step, best=self.best)

    def _record_validation(self, scores: ValidationScores, step: int, records: RunLog) -> None:
        if not scores.points:
            log.warning("No point of the validation frames has a label; the last checkpoint is used as the best")
            return
        pictures: Pictures = {}
        if self.draw is not None and self.settings.loggers and is_first_process():
            pictures = self.draw()
        records.write({"step": step, "validation": {"miou": scores.miou, "iou": scores.iou}}, pictures)
        metric = self.metric if scores.miou["xm"] is not None else "3d"
        miou = scores.miou[metric]
        if miou is not None and (self.best is None or miou > self.best.miou):
            self.best = Best(step=step, metric=metric, miou=miou)
