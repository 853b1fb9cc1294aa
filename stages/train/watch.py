"""A look at whether training still learns: a loss that stays far above its beginnings will not come back."""

from collections import deque
from collections.abc import Iterable
from statistics import median

from ...errors import RunError

__all__ = ["DivergenceWatch"]

WINDOW = 50  #: losses whose median is the level of a stretch
PATIENCE = 100  #: losses in a row that must all be too high
FACTOR = 3.0


class DivergenceWatch:
    """Watches the loss of each step; ``losses`` are those that a resumed run has behind it.

    It speaks up when each of the last ``PATIENCE`` losses is above the level at which the run began and above
    ``FACTOR`` times the lowest level it ever reached. A level is the median of ``WINDOW`` losses, so single hard
    batches count neither way.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._stretch: list[float] = []
        self._start: float | None = None
        self._lowest = float("inf")
        self._recent: deque[float] = deque(maxlen=PATIENCE)
        for loss in losses:
            self._take(loss)

    def check(self, step: int, loss: float) -> None:
        """Take the loss of ``step``.

        Raises:
            RunError: training has diverged.
        """
        self._take(loss)
        if self._start is None or len(self._recent) < PATIENCE:
            return
        if min(self._recent) > max(self._start, FACTOR * self._lowest):
            raise RunError(
                f"Training has diverged: at step {step} each of the last {PATIENCE} losses is above"
                f" {min(self._recent):.4g}, while the run began near {self._start:.4g} and came down to"
                f" {self._lowest:.4g}. Start another run with a lower train.lr (a third is a good try), or with"
                " train.precision=float32 where it was lower; the best checkpoint of this one is kept"
            )

    def _take(self, loss: float) -> None:
        self._recent.append(loss)
        self._stretch.append(loss)
        if len(self._stretch) == WINDOW:
            level = median(self._stretch)
            self._start = level if self._start is None else self._start
            self._lowest = min(self._lowest, level)
            self._stretch.clear()
