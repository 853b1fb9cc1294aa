"""The rows of the ablation, one per variant, shift and seed: their file, and their scores as a table to compare."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, FiniteFloat, TypeAdapter

from ...errors import DataError

__all__ = ["MEAN", "OUTPUTS", "Row", "RowFile", "ScoreTable", "parse_rows", "summarise"]

OUTPUTS = ("2d", "3d", "3d_lidar_only", "xm", "fused")  #: keys of a row's ``miou``
MEAN = "mean"  #: in place of a shift: the mean over all shifts, of the seeds that were tested on each

_Scores = Mapping[str, FiniteFloat | None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Scores of one trained network on the test split of one shift's target.

    ``miou`` and ``source_miou`` (the same network on the source's test split) have the keys of ``OUTPUTS``, from 0 to
    1. A score is null if the network lacks the output; ``fused`` is null in old rows too, and ``3d_lidar_only`` is
    measured on the target alone. ``iou`` maps each class to its scores in 2D, 3D, xM and fused. ``digest`` covers every
    setting and the data, apart from shift and seed. ``best`` is the validation that chose the checkpoint, ``code`` the
    version that training started with. ``seconds`` are those of the process that ended the run; work before an
    interruption, or for an initial run, is not included.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    shift: str
    variant: str
    seed: int
    miou: _Scores
    source_miou: _Scores
    iou: Mapping[str, _Scores]
    points: int
    steps: int
    best: Mapping[str, Any] | None
    seconds: float
    digest: str
    code: str
    features: str
    run: str
    command: str

    def __post_init__(self) -> None:
        for name in ("miou", "source_miou"):
            object.__setattr__(self, name, {"fused": None, **getattr(self, name)})
        if not (set(OUTPUTS) == set(self.miou) == set(self.source_miou)):
            raise ValueError(f"a row has the scores {', '.join(OUTPUTS)}; found {', '.join(self.miou)}")

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Shift, variant, seed and digest: unique among rows."""
        return self.shift, self.variant, self.seed, self.digest


def parse_rows(values: Any) -> list[Row]:
    """Returns rows from a list of JSON values.

    Raises:
        ValueError: one is not a row, or has a score that is NaN or infinite.
    """
    return TypeAdapter(list[Row]).validate_python(values)


class RowFile:
    """The file of finished rows, one JSON object per line. A truncated last line is dropped on opening.

    Raises:
        DataError: the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        try:
            self.rows = parse_rows([json.loads(line) for line in whole.splitlines()])
        except ValueError as error:
            raise DataError(
                f"{path} does not hold rows of this version ({error}); move it away, and the rows are made again from"
                " the runs beside it"
            ) from error

    def append(self, row: Row) -> None:
        """Appends ``row`` and flushes it to disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)


class ScoreTable:
    """Rows by variant, shift and seed; every value it returns is in points of mIoU, 0 to 100, by seed."""

    def __init__(self, rows: Iterable[Row], shifts: Sequence[str]) -> None:
        self.columns = (*shifts, MEAN)
        self.shifts = tuple(shifts)
        self._rows = {(row.variant, row.shift, row.seed): row for row in rows}
        self.variants = {variant for variant, _, _ in self._rows}
        self.seeds = sorted({seed for _, _, seed in self._rows})

    def rows(self, variant: str, shift: str) -> dict[int, Row]:
        """Returns the rows of ``variant`` on ``shift``."""
        return {seed: row for seed in self.seeds if (row := self._rows.get((variant, shift, seed)))}

    def scores(self, variant: str, output: str, shift: str, *, source: bool = False) -> dict[int, float]:
        """Returns the mean IoU on ``shift`` or in the ``MEAN``; with ``source`` that on the source's test split."""
        if shift == MEAN:
            return _mean([self.scores(variant, output, each, source=source) for each in self.shifts])
        rows = self.rows(variant, shift)
        return _points({seed: (row.source_miou if source else row.miou)[output] for seed, row in rows.items()})

    def class_scores(self, variant: str, output: str, name: str, shift: str) -> dict[int, float]:
        """Returns the IoU of the class ``name``, without the seeds in whose test it was absent."""
        if shift == MEAN:
            return _mean([self.class_scores(variant, output, name, each) for each in self.shifts])
        rows = self.rows(variant, shift)
        return _points({seed: row.iou.get(name, {}).get(output) for seed, row in rows.items()})

    def gains(
        self, variant: str, output: str, shift: str, *, over: str, over_output: str | None = None
    ) -> dict[int, float]:
        """Returns the score of ``variant`` less that of ``over``, paired by seed."""
        scores, others = self.scores(variant, output, shift), self.scores(over, over_output or output, shift)
        return {seed: value - others[seed] for seed, value in scores.items() if seed in others}


def summarise(values: Mapping[int, float]) -> tuple[float, float | None] | None:
    """Returns mean and sample deviation of values by seed; no deviation for one value, None for no value."""
    numbers = np.array(list(values.values()))
    if not len(numbers):
        return None
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else None


def _points(values: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: 100 * value for seed, value in values.items() if value is not None}


def _mean(parts: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Mean by seed over ``parts``, of the seeds that each part has."""
    shared = set.intersection(*map(set, parts)) if parts else set()
    return {seed: float(np.mean([part[seed] for part in parts])) for seed in sorted(shared)}
