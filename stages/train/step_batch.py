"""The batches and losses of one micro-batch: labelled source frames, unlabelled target frames, or both.

Both sides are made in the same way from separate random streams; the losses of both are added.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...prefetch import ring_slots
from .batch import Batch, BatchPlan
from .device_transfer import pin_memory
from .domain import Domain
from .features import feature_readers
from .loader import training_batch
from .losses import Losses, source_losses, target_losses
from .network import Network
from .norms import frozen_statistics
from .parallel import number_of_processes, rank
from .settings import AugmentSettings, TrainSettings
from .teacher import Teacher

__all__ = ["StepBatch", "StepMaker", "step_losses"]

SOURCE_STREAM, TARGET_STREAM = 0, 1  #: indices of the random streams


@dataclass(frozen=True, kw_only=True, eq=False)
class StepBatch:
    """The source and target batch of a micro-batch; a side that is not trained on is None."""

    source: Batch | None
    target: Batch | None

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the frames of both sides."""
        return tuple(key for side in (self.source, self.target) if side for key in side.keys)

    @property
    def points(self) -> int:
        """Number of points of both sides."""
        return sum(len(side.labels) for side in (self.source, self.target) if side)

    @property
    def outside(self) -> int:
        """Number of points of both sides that lay outside the voxel cube and were dropped."""
        return sum(side.outside for side in (self.source, self.target) if side)


class StepMaker:
    """Makes the batches of a micro-batch from its index; safe to call from several threads."""

    def __init__(
        self,
        *,
        source: Domain | None,
        target: Domain | None,
        plan: BatchPlan,
        augment: AugmentSettings,
        settings: TrainSettings,
        device: torch.device,
    ) -> None:
        self._plan, self._augment, self._settings, self._device = plan, augment, settings, device
        self._sides = source, target
        self._readers = [
            feature_readers(
                side.features if side is not None else None,
                ring_slots(settings.workers),
                taps=plan.taps,
                pinned=device.type == "cuda",
                memberships=plan.memberships,
            )
            for side in self._sides
        ]

    def __call__(self, index: int, slot: int) -> StepBatch:
        """Makes micro-batch ``index`` (from 0), with image features in the memory of ``slot`` of the prefetch ring."""
        source, target = (self._batch(stream, index, slot) for stream in (SOURCE_STREAM, TARGET_STREAM))
        return pin_memory(StepBatch(source=source, target=target), self._device)

    def _batch(self, stream: int, index: int, slot: int) -> Batch | None:
        settings, domain = self._settings, self._sides[stream]
        if domain is None:
            return None
        return training_batch(
            domain,
            self._plan,
            self._augment,
            batch_size=settings.batch_size,
            seed=settings.seed,
            step=index,
            block=settings.shuffle_block,
            stream=stream,
            share=(rank(), number_of_processes()),
            read=self._readers[stream][slot],
        )


def step_losses(
    network: Network,
    batch: StepBatch,
    weights: Float[Tensor, "classes"],
    settings: TrainSettings,
    teacher: Teacher | None = None,
) -> Losses:
    """Runs the network on each side of ``batch``, which is on its device; returns all losses and their weighted sum.

    The target's pseudo labels are those of ``teacher``, or those of the batch.
    """
    parts = []
    if batch.source is not None:
        side = batch.source
        output = network(side)
        parts.append(source_losses(output, side.labels, weights, settings, side.shown))
        if output.statistics is not None:
            network.image_statistics.update(output.statistics)
    if batch.target is not None:
        side = batch.target
        with frozen_statistics(network) if settings.target_norms == "source" else nullcontext():
            output = network(side)
        pseudo_labels = side.pseudo_labels if teacher is None else teacher.label(side)
        parts.append(target_losses(output, pseudo_labels, settings, side.shown))
    return sum(parts[1:], parts[0])
