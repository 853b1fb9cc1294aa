"""The log of a run: one JSON object a line in ``log.jsonl``, and TensorBoard beside it where asked for."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ...errors import RunError
from ...files import write_atomic

__all__ = ["NAME", "RunLog", "read_log"]

NAME = "log.jsonl"


class RunLog:
    """Appends records to the log of ``run``, after dropping those beyond ``step``, which a resumed run writes again.

    Raises:
        RunError: TensorBoard was asked for and is not installed.
    """

    def __init__(self, run: Path, *, step: int, tensorboard: bool) -> None:
        self._board = _open_board(run, step) if tensorboard else None
        path = run / NAME
        kept = "".join(json.dumps(record) + "\n" for record in read_log(run) if record["step"] <= step)
        write_atomic(path, lambda file: file.write(kept.encode()))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append ``record``, which has the key ``step``; numbers in it are drawn by TensorBoard too."""
        self._file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for key, value in _numbers(record, ""):
                self._board.add_scalar(key, value, record["step"])

    def flush(self) -> None:
        """Bring everything written so far to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of the log of ``run``, in order; a last line that was cut short is left out."""
    try:
        lines = (run / NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return list(_parsed(lines))


def _parsed(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            yield prefix + key, value


def _open_board(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError(
            "train.tensorboard is on, and TensorBoard is not installed; pip install 'xd3d[tensorboard]', or switch it"
            " off"
        ) from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
