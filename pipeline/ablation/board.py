"""Rows as numbers to compare: scores by seed, their mean and deviation, and gains that are paired seed by seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .rows import Row

__all__ = ["MEAN", "Board", "Summary", "said"]

MEAN = "mean"  #: in the place of a shift: the mean over all shifts, of the seeds that were tested on each


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean, and sample deviation (None below two), of values in points of mIoU."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Mapping[int, float]) -> "Summary | None":
        """The summary of values by seed; None where there is none."""
        if not values:
            return None
        numbers = np.array(list(values.values()))
        deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
        return cls(mean=float(numbers.mean()), deviation=deviation)


class Board:
    """Rows by variant, shift and seed; every value is in points, 0 to 100."""

    def __init__(self, rows: Iterable[Row], shifts: Sequence[str]) -> None:
        self.shifts = tuple(shifts)
        self._rows = {(row.variant, row.shift, row.seed): row for row in rows}

    @property
    def variants(self) -> set[str]:
        """The variants that have a row."""
        return {variant for variant, _, _ in self._rows}

    @property
    def seeds(self) -> list[int]:
        """The seeds that have a row."""
        return sorted({seed for _, _, seed in self._rows})

    @property
    def columns(self) -> tuple[str, ...]:
        """The shifts and their mean."""
        return (*self.shifts, MEAN)

    def of(self, variant: str, shift: str) -> dict[int, Row]:
        """The rows of ``variant`` on ``shift``, by seed."""
        found = {seed: self._rows.get((variant, shift, seed)) for seed in self.seeds}
        return {seed: row for seed, row in found.items() if row is not None}

    def scores(self, variant: str, reading: str, shift: str, *, source: bool = False) -> dict[int, float]:
        """Mean IoU by seed on ``shift`` or their ``MEAN``; with ``source`` that of the same networks on the source."""
        if shift == MEAN:
            return _mean_over([self.scores(variant, reading, each, source=source) for each in self.shifts])
        tables = {seed: row.source_miou if source else row.miou for seed, row in self.of(variant, shift).items()}
        return {seed: 100 * value for seed, table in tables.items() if (value := table[reading]) is not None}

    def class_scores(self, variant: str, reading: str, name: str, shift: str) -> dict[int, float]:
        """IoU of the class ``name`` by seed; seeds in whose test it was absent are left out."""
        if shift == MEAN:
            return _mean_over([self.class_scores(variant, reading, name, each) for each in self.shifts])
        tables = {seed: row.iou.get(name, {}) for seed, row in self.of(variant, shift).items()}
        return {seed: 100 * value for seed, table in tables.items() if (value := table.get(reading)) is not None}

    def gains(
        self, variant: str, reading: str, shift: str, *, over: str, over_reading: str | None = None
    ) -> dict[int, float]:
        """By how much ``variant`` is above ``over``, by seed, where both were tested."""
        ours = self.scores(variant, reading, shift)
        theirs = self.scores(over, over_reading or reading, shift)
        return {seed: value - theirs[seed] for seed, value in ours.items() if seed in theirs}


def said(values: Mapping[int, float], *, signed: bool = False) -> str:
    """Values by seed as a table says them: ``45.1 ± 0.8``, or ``-`` for none."""
    summary = Summary.of(values)
    if summary is None:
        return "-"
    mean = f"{summary.mean:+.1f}" if signed else f"{summary.mean:.1f}"
    return mean if summary.deviation is None else f"{mean} ± {summary.deviation:.1f}"


def _mean_over(parts: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Mean by seed over ``parts``, of the seeds that each part has."""
    shared = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {seed: float(np.mean([part[seed] for part in parts])) for seed in sorted(shared)}
