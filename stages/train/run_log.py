"""The log of a run: one JSON object per line in ``log.jsonl``, and the same numbers in the enabled loggers.

Of several processes only the first one writes it.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ...files import write_bytes
from ...processes import is_first_process
from .loggers import Logger, Pictures, open_loggers

__all__ = ["NAME", "RunLog", "past_losses", "read_log"]

log = logging.getLogger(__name__)

NAME = "log.jsonl"


class RunLog:
    """Appends records to the log of ``run``, after dropping those beyond ``step``, which a resumed run writes again.

    What ``loggers`` lack of the records before is sent to them first. A logger that fails later is given up with a
    warning, so that training goes on.

    Raises:
        RunError: a logger is not installed, or does not open.
    """

    def __init__(self, run: Path, *, step: int, loggers: Sequence[str] = ()) -> None:
        self._file: TextIO | None = None
        self._loggers: dict[str, Logger] = {}
        if not is_first_process():
            return
        records = read_log(run)
        self._loggers = open_loggers(loggers, run, step=step)
        kept = [record for record in records if record["step"] <= step]
        path = run / NAME
        write_bytes(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self._file = path.open("a", encoding="utf-8", buffering=1)  # each line is written when its step ends
        for record in kept if self._loggers else ():
            self._send(record, {})

    def write(self, record: Mapping[str, Any], pictures: Pictures | None = None) -> None:
        """Appends ``record``, which has the key ``step``; its numbers go to the loggers too, with ``pictures``."""
        if self._file is None:
            return
        self._file.write(json.dumps(record) + "\n")
        self._send(record, pictures or {})

    def flush(self) -> None:
        """Brings everything written so far to disk, and to the loggers."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._each(lambda logger: logger.flush())

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._file is not None:
                self._file.close()  # on a full disk this fails again, after the write that did
        finally:
            self._each(lambda logger: logger.close(failed=kind is not None))

    def _send(self, record: Mapping[str, Any], pictures: Pictures) -> None:
        step, numbers = record["step"], dict(_numbers(record, ""))

        def send(logger: Logger) -> None:
            new = {name: value for name, value in numbers.items() if not logger.holds(name, step)}
            if new:
                logger.write(step, new, pictures)

        self._each(send)

    def _each(self, action: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                action(logger)
            except Exception as error:  # of the library, a full disk, a lost server
                log.warning("The logger %s fails and gets nothing more of this run: %s", name, error)
                del self._loggers[name]


def read_log(run: Path) -> list[dict[str, Any]]:
    """Returns the records of the log of ``run``, in order; truncated or damaged lines are skipped."""
    try:
        lines = (run / NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return list(_parsed(lines))


def past_losses(run: Path, step: int) -> list[float]:
    """Returns the losses of the steps of ``run`` up to ``step``."""
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
