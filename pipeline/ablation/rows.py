"""The rows of the ablation: one JSON object a line for each (variant, shift, seed), kept through any stop."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, FiniteFloat, TypeAdapter

from ...errors import DataError

__all__ = ["READINGS", "Row", "RowFile", "Scores", "parse_rows"]

Scores = Mapping[str, FiniteFloat | None]
READINGS = ("2d", "3d", "3d_lidar_only", "xm", "fused")  #: keys of a row's ``miou``


@dataclass(frozen=True, kw_only=True)
class Row:
    """Scores of one trained network on the test split of one shift's target.

    ``miou`` and ``source_miou`` (the same network on the source's test split) have the keys of ``READINGS``, 0 to 1,
    null where a reading does not exist, as ``fused`` in rows from before it was scored; ``iou`` maps each class to its
    scores in 2D, 3D, xM and fused. ``digest`` stands for
    every setting and the data, apart from shift and seed; ``best`` is the validation that chose the checkpoint, and
    ``code`` the version that training began with. ``3d_lidar_only`` is measured on the target alone. ``seconds`` are
    those of the process that ended the run: what was done before a stop, or in training a teacher earlier, is not in.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    shift: str
    variant: str
    seed: int
    miou: Scores
    source_miou: Scores
    iou: Mapping[str, Scores]
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
        if not (set(READINGS) == set(self.miou) == set(self.source_miou)):
            raise ValueError(f"a row has the readings {', '.join(READINGS)}; found {', '.join(self.miou)}")

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What no two rows share: shift, variant, seed and digest."""
        return self.shift, self.variant, self.seed, self.digest


def parse_rows(values: Any) -> list[Row]:
    """Rows from a list of JSON values.

    Raises:
        ValueError: one is no row; a score that is NaN or infinite is none either.
    """
    return TypeAdapter(list[Row]).validate_python(values)


class RowFile:
    """The file of finished rows. A line that a kill cut short is dropped when the file is opened.

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
        """Add ``row`` and bring it to disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
