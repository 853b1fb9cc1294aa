"""Where the time of a run goes: seconds by activity, as the thread that drives the model spends them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ACTIVITIES", "StageClock"]

ACTIVITIES = ("model", "agents", "decoding", "writing")  #: the last two are waits for other threads


class StageClock:
    """Adds up the seconds of each activity; ``seconds`` holds them, ``elapsed`` the wall time since the start."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._start = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the last restart."""
        return time.perf_counter() - self._start

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Count the time of the block as that of ``activity``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start

    def shares(self) -> dict[str, float]:
        """Each activity's share of the wall time since the start."""
        elapsed = self.elapsed
        return {activity: seconds / elapsed for activity, seconds in self.seconds.items()}
