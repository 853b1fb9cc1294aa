"""The log of a run: one JSON object per line in ``log.jsonl``, and TensorBoard or Weights & Biases where enabled.

Of several processes only the first one writes it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO, runtime_checkable
from uuid import uuid4

from ...errors import RunError
from ...files import read_json, write_bytes, write_json
from ...processes import is_first_process

__all__ = ["Tracker", "NAME", "RunLog", "open_trackers", "past_losses", "read_log"]

NAME = "log.jsonl"
WANDB_FILE = "wandb.json"


class RunLog:
    """Appends records to the log of ``run``, after dropping those beyond ``step``, which a resumed run writes again.

    Raises:
        RunError: a tracker is enabled and not installed.
    """

    def __init__(self, run: Path, *, step: int, tensorboard: bool, wandb: bool = False) -> None:
        self._file: TextIO | None = None
        self._trackers: list[Tracker] = []
        if not is_first_process():
            return
        self._trackers = open_trackers(run, step=step, tensorboard=tensorboard, wandb=wandb)
        path = run / NAME
        kept = "".join(json.dumps(record) + "\n" for record in read_log(run) if record["step"] <= step)
        write_bytes(path, kept.encode())
        self._file = path.open("a", encoding="utf-8", buffering=1)  # each line is written when its step ends

    def write(self, record: Mapping[str, Any]) -> None:
        """Append ``record``, which has the key ``step``; its numbers go to the trackers too."""
        if self._file is None:
            return
        self._file.write(json.dumps(record) + "\n")
        numbers = dict(_numbers(record, ""))
        for tracker in self._trackers:
            tracker.write(record["step"], numbers)

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
        for tracker in self._trackers:
            tracker.close()


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


@runtime_checkable
class Tracker(Protocol):
    """An experiment tracker."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log ``numbers`` at ``step``."""

    def close(self) -> None:
        """Flush and close."""


def open_trackers(run: Path, *, step: int, tensorboard: bool, wandb: bool) -> list[Tracker]:
    """Open the enabled trackers, for a run that has done ``step`` steps.

    Raises:
        RunError: a tracker is not installed.
    """
    return [*([_TensorBoard(run, step)] if tensorboard else []), *([_WeightsAndBiases(run)] if wandb else [])]


class _TensorBoard:
    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _not_installed("TensorBoard", "tensorboard", error) from error
        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A resumed run continues under the id in ``wandb.json``; ``step`` is the x axis."""

    def __init__(self, run: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("Weights & Biases", "wandb", error) from error
        path = run / WANDB_FILE
        if not path.exists():
            write_json(path, {"id": uuid4().hex})
        self._run: Any = wandb.init(
            project="xd3d", name=run.name, id=read_json(path)["id"], resume="allow", dir=str(run), reinit="create_new"
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        self._run.finish()


def _not_installed(name: str, extra: str, error: ImportError) -> RunError:
    return RunError(
        f"train.{extra} is on, and {name} does not import ({error}); pip install 'xd3d[{extra}]', or switch it off"
    )
