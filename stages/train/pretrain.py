"""Pretraining of the 3D network from cached image features, in the loop of training; label files are never opened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import RunError
from ...processes import select_device
from .checks import check_domains
from .distil import PretrainingNetwork
from .domain import Domain
from .loggers import require_loggers
from .loop import Trainer, TrainSummary, open_run, run_session
from .optimise import Stepper
from .record import PRETRAINED, make_record
from .settings import AugmentSettings, FusionSettings, ModelSettings, TrainSettings
from .step_batch import StepMaker

__all__ = ["pretrain"]


def pretrain(
    *,
    run: Path,
    source: Domain | None,
    target: Domain | None,
    model: ModelSettings,
    fusion: FusionSettings,
    augment: AugmentSettings,
    settings: TrainSettings,
    facts: Mapping[str, Any] | None = None,
) -> TrainSummary:
    """Pretrains on the images and clouds of ``source``, ``target`` or both into ``run``; resumes a stopped run.

    Of ``fusion`` the taps and their normalisation are used, and its variant must use images. Of ``settings`` the losses
    are not used. ``facts`` and several processes: as in ``loop.train``.

    Raises:
        RunError: a logger is not installed; a domain has no images; the folder belongs to another run, or another
            process is training in it; or the loss is not finite.
        ConfigError: the settings contradict the data: an unknown tap, a batch larger than the domain.
        CacheError: images of a domain have no features.
        BackendError: the requested device or sparse backend is not available.
    """
    require_loggers(settings.loggers)
    source, target = (side.unlabelled() if side is not None else None for side in (source, target))
    for side in (source, target):
        if side is not None and side.features is None:
            raise RunError(
                f"Pretraining learns from images, and {side.index.dataset} is prepared without cameras; prepare it"
                " with --cameras and extract features, or name other data (data.source, data.target)"
            )
    taps = check_domains(source=source, target=target, validation=None, fusion=fusion, settings=settings)
    record = make_record(
        model=model,
        fusion=fusion,
        augment=augment,
        settings=settings,
        source=source,
        target=target,
        taps=taps,
        facts=facts or {},
    )
    device = select_device(settings.device, setting="train.device")
    with run_session(run, settings.seed, device):
        _, done = open_run(run, {**record, "kind": PRETRAINED}, list, None)
        if done >= settings.steps:
            return TrainSummary(run=run, steps=done, best=None)
        network = PretrainingNetwork(model=model, fusion=fusion, taps=taps, device=device)
        make = StepMaker(
            source=source, target=target, plan=network.plan, augment=augment, settings=settings, device=device
        )
        return Trainer(run, make, settings, Stepper(network, None, settings)).train(done)
