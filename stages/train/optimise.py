"""One step of training: its batches go backward one after another, then Adam moves once.

Gradients of all batches and all processes add up first. Random numbers of a step are seeded by its number, so a resumed
run draws what an unbroken one would have drawn, in every process alike.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import RunError
from .losses import Losses
from .network import Network
from .norms import norm_momentum, set_norm_momentum
from .parallel import sum_gradients, total
from .settings import TrainSettings
from .shift import StepBatch, step_losses
from .streams import Use, generator

__all__ = ["StepResult", "Stepper", "learning_rate"]

LEAST_SCALE = 2.0**-14  #: of the loss in float16; it starts at 65536 and halves with each step that overflows
MOST_SKIPPED = 10  #: steps in a row that may be left out in float16 because the loss is not finite

log = logging.getLogger(__name__)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of ``step`` (from 0): ``lr``, a tenth of it after each milestone passed."""
    passed = sum(step >= milestone for milestone in settings.milestones)
    return settings.lr * 0.1**passed


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did, over all processes: the mean of each loss over its batches, ``loss`` being their weighted sum.

    ``losses`` is empty where the step was left out. ``frames`` and ``points`` are those of its batches, ``waited`` the
    seconds without a batch.
    """

    losses: Mapping[str, float]
    frames: int
    points: int
    waited: float


class Stepper:
    """Adam over the parameters of ``network``, which it sets to the precision of ``settings``.

    In float16 the loss is scaled so that small gradients stay above zero; ``scaler`` holds the scale. A step whose loss
    or gradients overflow is left out, and the scale comes down if it was the gradients.
    """

    def __init__(self, network: Network, weights: Float[Tensor, "classes"], settings: TrainSettings) -> None:
        network.precision = getattr(torch, settings.precision)
        self.network, self._weights, self._settings = network, weights, settings
        self.optimiser = torch.optim.Adam(network.parameters(), lr=settings.lr)
        self.scaler = torch.amp.GradScaler(network.device.type, enabled=settings.precision == "float16")
        self._skipped = 0

    def step(self, number: int, batches: Iterable[tuple[StepBatch, float]]) -> StepResult:
        """Do step ``number`` (from 0) over its ``train.accumulate`` batches, each with the seconds it was waited for.

        The batches lie on the network's device.

        Reading the losses waits for the device, so the memory of a batch may be used again once the next is asked for.

        Raises:
            RunError: the loss is not finite, in float16 for many steps in a row; the message names the frames. Or in
                float16 no scale of the loss has given finite gradients for many steps.
        """
        settings = self._settings
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(settings, number)
        self.optimiser.zero_grad(set_to_none=True)
        buffers = [each.clone() for each in self.network.buffers()] if self.scaler.is_enabled() else []
        told, keys, waited = list[StepResult](), list[str](), 0.0
        for part, (batch, seconds) in enumerate(batches):
            told.append(self._backward(number, part, batch))
            keys += batch.keys
            waited += seconds
        losses = {name: fmean(each.losses[name] for each in told) for name in told[0].losses}
        if np.isfinite(losses["loss"]):
            self._update(number)
        else:
            self._skip(number, losses, keys, buffers)
            losses = {}
        return StepResult(
            losses=losses,
            frames=sum(each.frames for each in told),
            points=sum(each.points for each in told),
            waited=waited,
        )

    def _update(self, number: int) -> None:
        """Take the optimiser's step by the gradients of all processes."""
        self._skipped = 0
        sum_gradients(self.network.parameters())
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._require_scale(number)

    def _skip(self, number: int, losses: Mapping[str, float], keys: Iterable[str], buffers: Sequence[Tensor]) -> None:
        """Leave the step out and put back what its forward passes did to the running statistics.

        Raises:
            RunError: the precision is not float16, or too many steps were left out in a row.
        """
        error = _not_finite(number, losses, keys)
        if not self.scaler.is_enabled() or self._skipped == MOST_SKIPPED:
            raise error
        self._skipped += 1
        with torch.no_grad():
            for buffer, before in zip(self.network.buffers(), buffers, strict=True):
                buffer.copy_(before)
        log.warning("The step is left out (%d in a row, of at most %d). %s", self._skipped, MOST_SKIPPED, error)

    def _require_scale(self, number: int) -> None:
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            raise RunError(
                f"Up to step {number + 1} the gradients were not finite in float16, however small the loss was scaled,"
                " and nothing was learned; set train.precision=float32, or look at the frames of these steps. The run's"
                " last checkpoint is whole"
            )

    def _backward(self, number: int, part: int, batch: StepBatch) -> StepResult:
        settings = self._settings
        turn = number * settings.accumulate + part
        torch.manual_seed(int(generator(settings.seed, Use.FORWARD, turn).integers(2**63)))
        set_norm_momentum(self.network, norm_momentum(turn))
        losses = step_losses(self.network, batch, self._weights, settings)
        result = _over_all_processes(losses, batch)
        if not np.isfinite(result.losses["loss"]):
            return result
        torch.autograd.backward(self.scaler.scale(losses.total / settings.accumulate))
        return result


def _over_all_processes(losses: Losses, batch: StepBatch) -> StepResult:
    every = {"loss": losses.total, **losses.terms}
    own = torch.stack(list(every.values())).detach().double()
    *values, frames, points = total(torch.cat([own, own.new_tensor([len(batch.keys), batch.points])])).tolist()
    return StepResult(losses=dict(zip(every, values, strict=True)), frames=int(frames), points=int(points), waited=0.0)


def _not_finite(number: int, values: Mapping[str, float], keys: Iterable[str]) -> RunError:
    terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return RunError(
        f"The loss is not finite at step {number + 1} ({terms}); the batch held the frames {', '.join(keys)}."
        " Lower train.lr, set train.precision=float32, or look at these frames; the run's last checkpoint is whole"
    )
