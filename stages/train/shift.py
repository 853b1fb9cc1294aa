"""The two sides of a shift in one step: a batch of the labelled source, and one of the unlabelled target.

Both are made in the same way, from streams of random numbers of their own, and the losses of both are one sum.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...prefetch import ring_slots
from .batch import Batch, BatchPlan
from .buffers import domain_of_each_slot
from .domain import Domain
from .loader import training_batch
from .losses import Losses, source_losses, target_losses
from .network import Network
from .norms import held_statistics
from .parallel import number_of_processes, rank
from .settings import AugmentSettings, TrainSettings
from .transfer import pin_memory

__all__ = ["StepBatch", "StepMaker", "step_losses"]

SOURCE_STREAM, TARGET_STREAM = 0, 1


@dataclass(frozen=True, kw_only=True, eq=False)
class StepBatch:
    """What a step learns from; a side that is not trained on is None."""

    source: Batch | None
    target: Batch | None

    @property
    def keys(self) -> tuple[str, ...]:
        """The frames of both sides."""
        return tuple(key for side in (self.source, self.target) if side for key in side.keys)

    @property
    def points(self) -> int:
        """The points of both sides."""
        return sum(len(side.labels) for side in (self.source, self.target) if side)


class StepMaker:
    """Makes the batches of a step, wherever it is called and whenever."""

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
        slots = ring_slots(settings.workers)
        self._plan, self._augment, self._settings, self._device = plan, augment, settings, device
        self._sides = [
            domain_of_each_slot(side, slots, taps=plan.taps, device=device, memberships=plan.memberships)
            if side
            else None
            for side in (source, target)
        ]

    def __call__(self, step: int, slot: int) -> StepBatch:
        """The batches of turn ``step`` (from 0), in the memory of ``slot`` of a loader's ring."""
        source, target = self._sides
        made = StepBatch(
            source=self._batch(source[slot], step, SOURCE_STREAM) if source else None,
            target=self._batch(target[slot], step, TARGET_STREAM) if target else None,
        )
        return pin_memory(made, self._device)

    def _batch(self, domain: Domain, step: int, stream: int) -> Batch:
        settings = self._settings
        return training_batch(
            domain,
            self._plan,
            self._augment,
            batch_size=settings.batch_size,
            seed=settings.seed,
            step=step,
            block=settings.shuffle_block,
            stream=stream,
            share=(rank(), number_of_processes()),
        )


def step_losses(
    network: Network, batch: StepBatch, weights: Float[Tensor, "classes"], settings: TrainSettings
) -> Losses:
    """Run the network on each side of ``batch``, which lies on its device; every loss, and the sum to go back from."""
    parts = []
    if batch.source is not None:
        side = batch.source
        output = network(side)
        parts.append(source_losses(output, side.labels, weights, settings, side.shown))
        if output.statistics is not None:
            network.image_statistics.update(output.statistics)
    if batch.target is not None:
        side = batch.target
        with held_statistics(network) if settings.target_norms == "source" else nullcontext():
            output = network(side)
        parts.append(target_losses(output, side.pseudo_labels, settings, side.shown))
    return sum(parts[1:], parts[0])
