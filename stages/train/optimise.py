"""One training step: back-propagates each micro-batch, then takes one Adam step.

Gradients are summed over the micro-batches and over all processes. The random generators are seeded by the index of the
micro-batch, so a resumed run draws the same numbers as an uninterrupted one, and every process draws the same.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import RunError
from .distil import PretrainingNetwork, pretraining_losses
from .losses import Losses
from .network import Network
from .norms import norm_momentum, set_norm_momentum
from .parallel import sum_gradients, total
from .random_streams import Use, generator
from .settings import TrainSettings
from .step_batch import StepBatch, step_losses
from .teacher import Teacher

__all__ = ["StepResult", "Stepper", "learning_rate"]

MIN_SCALE = 2.0**-14  #: of the loss in float16; the scale starts at 65536 and is halved by each step that overflows
MAX_SKIPPED = 10  #: consecutive steps that may be skipped in float16 because the loss is not finite

log = logging.getLogger(__name__)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Returns the learning rate of ``step`` (from 0): ``lr``, divided by 10 at each milestone."""
    passed = sum(step >= milestone for milestone in settings.milestones)
    return settings.lr * 0.1**passed


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The result of a step over all processes: each loss, averaged over micro-batches; ``loss`` is the weighted sum.

    ``losses`` is empty if the step was skipped. ``frames`` and ``points`` count those of its micro-batches, ``outside``
    the points that lay outside the voxel cube and were dropped; ``waited`` is the time spent waiting, in seconds.
    """

    losses: Mapping[str, float]
    frames: int
    points: int
    outside: int
    waited: float


class Stepper:
    """Adam over the parameters of ``network``, whose precision it sets to that of ``settings``.

    ``weights`` are the class weights of the losses, None in pretraining. The learning rate of the network's
    backbone is ``backbone_rate`` times that of its other parts; 0 freezes it.

    In float16 the loss is scaled so that small gradients do not underflow; ``scaler`` holds the scale. A step whose
    loss or gradients overflow is skipped, and the scale is lowered if the gradients did. ``teacher`` labels the target
    and follows the network. ``micro_batches`` is the number that BatchNorm's running statistics already cover.
    """

    def __init__(
        self,
        network: Network | PretrainingNetwork,
        weights: Float[Tensor, "classes"] | None,
        settings: TrainSettings,
        *,
        backbone_rate: float = 1.0,
        teacher: Teacher | None = None,
        micro_batches: int = 0,
    ) -> None:
        network.precision = getattr(torch, settings.precision)
        self.network, self._weights, self._settings, self.teacher = network, weights, settings, teacher
        self.optimiser = torch.optim.Adam(_parameter_groups(network, backbone_rate), lr=settings.lr)
        self.scaler = torch.amp.GradScaler(network.device.type, enabled=settings.precision == "float16")
        self._skipped, self._micro_batches = 0, micro_batches

    def step(self, number: int, batches: Iterable[tuple[StepBatch, float]]) -> StepResult:
        """Takes step ``number`` (from 0) on its ``train.accumulate`` micro-batches, with the seconds waited for each.

        The batches are on the network's device. Reading the losses synchronises with it, so the memory of a batch may
        be reused once the next one is requested.

        Raises:
            RunError: the loss is not finite (in float16: for many consecutive steps; the message names the frames), or
                in float16 no scale of the loss gave finite gradients for many steps.
        """
        settings = self._settings
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(settings, number) * group["rate"]
        self.optimiser.zero_grad(set_to_none=True)
        buffers = [each.clone() for each in self.network.buffers()] if self.scaler.is_enabled() else []
        results, keys, waited = list[StepResult](), list[str](), 0.0
        for part, (batch, seconds) in enumerate(batches):
            results.append(self._backward(number, part, batch))
            keys += batch.keys
            waited += seconds
        losses = {name: fmean(each.losses[name] for each in results) for name in results[0].losses}
        if np.isfinite(losses["loss"]):
            self._update(number)
        else:
            self._skip(number, losses, keys, buffers)
            losses = {}
        return StepResult(
            losses=losses,
            frames=sum(each.frames for each in results),
            points=sum(each.points for each in results),
            outside=sum(each.outside for each in results),
            waited=waited,
        )

    def _update(self, number: int) -> None:
        """Sum the gradients of all processes and take one step of the optimiser."""
        self._skipped = 0
        sum_gradients(self.network.parameters())
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._require_scale(number)
        if self.teacher is not None:
            self.teacher.update(self.network)

    def _skip(self, number: int, losses: Mapping[str, float], keys: Iterable[str], buffers: Sequence[Tensor]) -> None:
        """Skips the step and restores the running statistics that its forward passes changed.

        Raises:
            RunError: the precision is not float16, or too many consecutive steps were skipped.
        """
        error = _not_finite(number, losses, keys)
        if not self.scaler.is_enabled() or self._skipped == MAX_SKIPPED:
            raise error
        self._skipped += 1
        with torch.no_grad():
            for buffer, before in zip(self.network.buffers(), buffers, strict=True):
                buffer.copy_(before)
        log.warning("The step is skipped (%d in a row, of at most %d). %s", self._skipped, MAX_SKIPPED, error)

    def _require_scale(self, number: int) -> None:
        if self.scaler.is_enabled() and self.scaler.get_scale() < MIN_SCALE:
            raise RunError(
                f"Up to step {number + 1} the gradients were not finite in float16, however small the loss was scaled,"
                " and nothing was learned; set train.precision=float32, or check the frames of these steps. The run's"
                " last checkpoint is valid"
            )

    def _losses(self, batch: StepBatch) -> Losses:
        if isinstance(self.network, PretrainingNetwork):
            return pretraining_losses(self.network, batch, self._settings)
        if self._weights is None:
            raise ValueError("Losses of labels need class weights")
        return step_losses(self.network, batch, self._weights, self._settings, self.teacher)

    def _backward(self, number: int, part: int, batch: StepBatch) -> StepResult:
        settings = self._settings
        micro_batch = number * settings.accumulate + part
        torch.manual_seed(int(generator(settings.seed, Use.FORWARD, micro_batch).integers(2**63)))
        set_norm_momentum(self.network, norm_momentum(self._micro_batches + micro_batch))
        losses = self._losses(batch)
        result = _over_all_processes(losses, batch)
        if not np.isfinite(result.losses["loss"]):
            return result
        torch.autograd.backward(self.scaler.scale(losses.total / settings.accumulate))
        return result


def _parameter_groups(network: Network | PretrainingNetwork, backbone_rate: float) -> list[dict[str, Any]]:
    """Returns the parameters that are trained, those with another learning rate than ``train.lr`` in a second group."""
    if backbone_rate == 1 or isinstance(network, PretrainingNetwork):
        return [{"params": list(network.parameters()), "rate": 1.0}]
    if not backbone_rate:
        network.freeze_backbone()
    slow = {parameter for part in network.backbone for parameter in part.parameters()}
    others = [parameter for parameter in network.parameters() if parameter not in slow]
    groups = [{"params": others, "rate": 1.0}]
    if backbone_rate:
        groups.append({"params": [each for each in network.parameters() if each in slow], "rate": backbone_rate})
    return groups


def _over_all_processes(losses: Losses, batch: StepBatch) -> StepResult:
    every = {"loss": losses.total, **losses.terms}
    local = torch.stack(list(every.values())).detach().double()
    counts = local.new_tensor([len(batch.keys), batch.points, batch.outside])
    *values, frames, points, outside = total(torch.cat([local, counts])).tolist()
    losses_of_all = dict(zip(every, values, strict=True))
    return StepResult(losses=losses_of_all, frames=int(frames), points=int(points), outside=int(outside), waited=0.0)


def _not_finite(number: int, values: Mapping[str, float], keys: Iterable[str]) -> RunError:
    terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return RunError(
        f"The loss is not finite at step {number + 1} ({terms}); the batch held the frames {', '.join(keys)}."
        " Lower train.lr, set train.precision=float32, or check these frames; the run's last checkpoint is valid"
    )
