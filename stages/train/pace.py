"""How fast training goes, and what part of it is spent waiting for data."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PACE_NAMES", "Pace", "StepPace"]

#: What a step's record in the log says of it; ``wait`` is a share of ``seconds``.
PACE_NAMES = ("seconds", "wait", "frames_per_second", "points_per_second")
RECENT = 20  #: steps that the progress bar looks back over


@dataclass(frozen=True, kw_only=True)
class StepPace:
    """Seconds on the clock, those of them spent waiting for batches, and the frames and points worked on meanwhile."""

    seconds: float
    waited: float
    frames: int
    points: int

    def __add__(self, other: "StepPace") -> "StepPace":
        return StepPace(
            seconds=self.seconds + other.seconds,
            waited=self.waited + other.waited,
            frames=self.frames + other.frames,
            points=self.points + other.points,
        )

    def record(self) -> Mapping[str, float]:
        """The values of ``PACE_NAMES``."""
        values = (self.seconds, self.waited / self.seconds, self.frames / self.seconds, self.points / self.seconds)
        return dict(zip(PACE_NAMES, values, strict=True))


class Pace:
    """Adds up the steps; validation and checkpoints lie between them and do not count."""

    def __init__(self) -> None:
        self._recent: deque[StepPace] = deque(maxlen=RECENT)
        self._all: StepPace | None = None

    def add(self, step: StepPace) -> None:
        """Count a step."""
        self._recent.append(step)
        self._all = step if self._all is None else self._all + step

    def postfix(self) -> dict[str, str]:
        """What the progress bar shows of the last steps."""
        first, *rest = self._recent
        recent = sum(rest, first).record()
        return {"frames/s": f"{recent['frames_per_second']:.2f}", "wait": f"{100 * recent['wait']:.0f}%"}

    def summary(self) -> str:
        """All steps in a sentence."""
        if self._all is None:
            return "No step was left to do"
        whole = self._all.record()
        return (
            f"Trained {self._all.frames} frames in {self._all.seconds:.0f} s: {whole['frames_per_second']:.2f}"
            f" frames/s, {whole['points_per_second']:.0f} points/s, {100 * whole['wait']:.1f} % of it waiting for data"
        )
