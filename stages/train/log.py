"""The log of a run: one JSON object a line in ``log.jsonl``, and boards beside it where asked for.

Of several processes the first keeps it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ...files import write_bytes
from ...processes import is_first_process
from .boards import Board, open_boards

__all__ = ["NAME", "RunLog", "past_losses", "read_log"]

NAME = "log.jsonl"


class RunLog:
    """Appends records to the log of ``run``, after dropping those beyond ``step``, which a resumed run writes again.

    Raises:
        RunError: a board was asked for and is not installed.
    """

    def __init__(self, run: Path, *, step: int, tensorboard: bool, wandb: bool = False) -> None:
        self._file: TextIO | None = None
        self._boards: list[Board] = []
        if not is_first_process():
            return
        self._boards = open_boards(run, step=step, tensorboard=tensorboard, wandb=wandb)
        path = run / NAME
        kept = "".join(json.dumps(record) + "\n" for record in read_log(run) if record["step"] <= step)
        write_bytes(path, kept.encode())
        self._file = path.open("a", encoding="utf-8", buffering=1)  # a line is there as soon as its step is done

    def write(self, record: Mapping[str, Any]) -> None:
        """Append ``record``, which has the key ``step``; numbers in it are drawn by the boards too."""
        if self._file is None:
            return
        self._file.write(json.dumps(record) + "\n")
        numbers = dict(_numbers(record, ""))
        for board in self._boards:
            board.write(record["step"], numbers)

    def flush(self) -> None:
        """Bring everything written so far to disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        for board in self._boards:
            board.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of the log of ``run``, in order; lines that were cut short or damaged are left out."""
    try:
        lines = (run / NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return list(_parsed(lines))


def past_losses(run: Path, step: int) -> list[float]:
    """The loss of each step of ``run`` up to ``step``."""
    return [record["loss"] for record in read_log(run) if record["step"] <= step and "loss" in record]


def _parsed(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


def _numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            yield prefix + key, value
