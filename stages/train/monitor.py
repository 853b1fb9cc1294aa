"""Monitors a training run: throughput, the share of time spent waiting for data, and divergence of the loss."""

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import NamedTuple

from ...errors import RunError

__all__ = ["CubeWatch", "DivergenceWatch", "TIMING_KEYS", "Throughput", "StepTiming"]

log = logging.getLogger(__name__)

#: Keys of a step's timing in the log; ``wait`` is a fraction of ``seconds``.
TIMING_KEYS = ("seconds", "wait", "frames_per_second", "points_per_second")
RECENT = 20  #: steps that the progress bar averages over


class StepTiming(NamedTuple):
    """Wall-clock seconds, the part of them spent waiting for batches, and the frames and points processed."""

    seconds: float
    waited: float
    frames: int
    points: int

    def record(self) -> Mapping[str, float]:
        """Returns the values of ``TIMING_KEYS``."""
        rates = (value / self.seconds for value in (self.waited, self.frames, self.points))
        return dict(zip(TIMING_KEYS, (self.seconds, *rates), strict=True))


def _sum(steps: Iterable[StepTiming]) -> StepTiming:
    return StepTiming(*map(sum, zip(*steps, strict=True)))


class Throughput:
    """Adds up the timings of the steps; validation and checkpoints are not counted."""

    def __init__(self) -> None:
        self._recent: deque[StepTiming] = deque(maxlen=RECENT)
        self._all = StepTiming(seconds=0.0, waited=0.0, frames=0, points=0)

    def add(self, step: StepTiming) -> None:
        """Adds a step."""
        self._recent.append(step)
        self._all = _sum([self._all, step])

    def postfix(self) -> dict[str, str]:
        """Returns what the progress bar shows of the last steps."""
        recent = _sum(self._recent).record()
        return {"frames/s": f"{recent['frames_per_second']:.2f}", "wait": f"{100 * recent['wait']:.0f}%"}

    def summary(self) -> str:
        """Returns a sentence about all steps."""
        if not self._all.seconds:
            return "No steps left to train"
        whole = self._all.record()
        return (
            f"Trained {self._all.frames} frames in {self._all.seconds:.0f} s: {whole['frames_per_second']:.2f}"
            f" frames/s, {whole['points_per_second']:.0f} points/s, {100 * whole['wait']:.1f} % of it waiting for data"
        )


LEFT_OUT = 0.01  #: share of the points above which a warning is due


class CubeWatch:
    """Counts the points that lie outside the voxel cube, and warns once when they are more than a per cent."""

    def __init__(self) -> None:
        self._points = self._outside = 0
        self._warned = False

    def add(self, *, inside: int, outside: int) -> None:
        """Adds the points of a step that are trained on, and those that were dropped."""
        self._points += inside + outside
        self._outside += outside
        if self._share > LEFT_OUT and not self._warned:
            self._warned = True
            log.warning(
                "%.1f %% of the points lie outside the voxel cube and are not trained on (%d of %d); raise"
                " model.full_scale or model.voxel_size, or look for stray points in the sweeps",
                *(100 * self._share, self._outside, self._points),
            )

    @property
    def _share(self) -> float:
        return self._outside / max(self._points, 1)

    def summary(self) -> str:
        """Returns a sentence about all steps, "" if no point was dropped."""
        if not self._outside:
            return ""
        return f"{self._outside} points ({100 * self._share:.2g} %) lay outside the voxel cube and were left out"


WINDOW = 50  #: losses per window, whose median is the level of the window
PATIENCE = 100  #: consecutive losses that must all be too high
FACTOR = 3.0


class DivergenceWatch:
    """Detects divergence of the loss; ``losses`` are those of the steps before a run was resumed.

    Training has diverged when each of the last ``PATIENCE`` losses is above the first level of the run and above
    ``FACTOR`` times its lowest level. A level is the median of a window of ``WINDOW`` losses, so that single hard
    batches do not matter.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._window: list[float] = []
        self._start: float | None = None
        self._lowest = float("inf")
        self._recent: deque[float] = deque(maxlen=PATIENCE)
        for loss in losses:
            self._add(loss)

    def check(self, step: int, loss: float) -> None:
        """Adds the loss of ``step``.

        Raises:
            RunError: training has diverged.
        """
        self._add(loss)
        if self._start is None or len(self._recent) < PATIENCE:
            return
        if min(self._recent) > max(self._start, FACTOR * self._lowest):
            raise RunError(
                f"Training has diverged: at step {step} each of the last {PATIENCE} losses is above"
                f" {min(self._recent):.4g}, while the run began near {self._start:.4g} and came down to"
                f" {self._lowest:.4g}. Start another run with a lower train.lr (a third is a good try), or with"
                " train.precision=float32 where it was lower; the best checkpoint of this one is kept"
            )

    def _add(self, loss: float) -> None:
        self._recent.append(loss)
        self._window.append(loss)
        if len(self._window) == WINDOW:
            level = median(self._window)
            self._start = level if self._start is None else self._start
            self._lowest = min(self._lowest, level)
            self._window.clear()
