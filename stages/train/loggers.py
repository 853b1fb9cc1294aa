"""The experiment loggers of ``train.loggers``: TensorBoard, Weights & Biases, MLflow and Trackio behind one protocol.

A run that was killed may have logged steps after its last checkpoint, and repeats them when it resumes.
``Logger.holds`` returns whether a value was logged before, so that no step is logged twice.
"""

import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

import numpy as np
from jaxtyping import UInt8

from ...errors import RunError
from ...files import read_json, write_json
from .wandb_files import read_history

__all__ = ["MODULES", "Logger", "Pictures", "open_loggers", "require_loggers"]

PROJECT = "xd3d"
#: The module that each logger needs; the extra of pip has the logger's name.
MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}

Pictures = Mapping[str, UInt8[np.ndarray, "height width 3"]]  #: by name


@runtime_checkable
class Logger(Protocol):
    """Where numbers and pictures of a run go beside ``log.jsonl``."""

    def holds(self, name: str, step: int) -> bool:
        """Returns whether the number ``name`` of ``step`` was in the logger when it was opened."""
        ...

    def write(self, step: int, numbers: Mapping[str, float], pictures: Pictures) -> None:
        """Logs ``numbers`` and ``pictures`` at ``step``."""

    def flush(self) -> None:
        """Brings to disk, or sends, what was written."""

    def close(self, *, failed: bool) -> None:
        """Flushes and closes; ``failed``: an error ends the training."""


def require_loggers(names: Sequence[str]) -> None:
    """Checks that the packages of loggers are installed.

    Raises:
        RunError: one is not.
    """
    for name in names:
        if find_spec(MODULES[name]) is None:
            raise RunError(
                f"train.loggers names {name}, and its package is not installed; pip install 'xd3d[{name}]', or leave it"
                " out of train.loggers"
            )


def open_loggers(names: Sequence[str], run: Path, *, step: int) -> dict[str, Logger]:
    """Opens loggers for a run that begins or resumes after ``step``.

    Raises:
        RunError: a logger is not installed, or does not open.
    """
    require_loggers(names)
    opened: dict[str, Logger] = {}
    for name in dict.fromkeys(names):
        try:
            opened[name] = _KINDS[name](run, step)
        except Exception as error:
            raise RunError(
                f"The logger {name} does not open: {error}\nMend that, or leave {name} out of train.loggers"
            ) from error
    return opened


class _TensorBoard:
    """Event files in ``tensorboard/``; TensorBoard drops what older files hold of the steps after ``step``."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        self._kept = step if folder.exists() else 0
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def holds(self, name: str, step: int) -> bool:
        return step <= self._kept

    def write(self, step: int, numbers: Mapping[str, float], pictures: Pictures) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run under the id in ``wandb.json``; ``step`` is the x axis.

    Rows that are missing from the files in ``wandb/`` after a kill are logged again, unless the server's summary shows
    that it has them.
    """

    FLUSH = "x_transaction_log_flush_interval"  #: 15 seconds by default; versions before 0.31 have no such setting

    def __init__(self, run: Path, step: int) -> None:
        import wandb

        identity = _identity(run / "wandb.json", lambda: uuid4().hex)
        self._last: dict[str, int] = {}
        for path in sorted((run / "wandb").glob(f"*run-*/run-{identity}.wandb")):
            for row in read_history(path):
                self._last |= dict.fromkeys(row, int(row.get("step", 0)))
        self._picture = wandb.Image
        self._run: Any = wandb.init(
            project=PROJECT,
            name=run.name,
            id=identity,
            resume="allow",
            dir=str(run),
            reinit="create_new",
            settings={self.FLUSH: 1.0} if self.FLUSH in wandb.Settings.model_fields else {},
        )
        self._run.define_metric("*", step_metric="step")
        self._served = int(self._run.summary.get("step", 0))

    def holds(self, name: str, step: int) -> bool:
        return step < self._served or step <= self._last.get(name, 0)

    def write(self, step: int, numbers: Mapping[str, float], pictures: Pictures) -> None:
        images = {name: self._picture(picture) for name, picture in pictures.items()}
        self._run.log({"step": step, **numbers, **images})

    def flush(self) -> None:
        pass  # the library has no such call

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    """A run of the server ``MLFLOW_TRACKING_URI``, by default of the file ``mlflow.db`` of the run's folder.

    A call takes tens of milliseconds, so numbers are sent in batches.
    """

    SECONDS, NUMBERS = 2.0, 900  #: a batch is sent after as many; MLflow takes 1000 numbers

    def __init__(self, run: Path, step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._metric, self._sent = Metric, time.monotonic()
        self._waiting: list[Any] = []
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.absolute()}/mlflow.db")
        self._id = _identity(run / "mlflow.json", lambda: self._begin(run))
        self._client.update_run(self._id, status="RUNNING")
        held = self._client.get_run(self._id).data.to_proto().metrics
        self._last = {metric.key: metric.step for metric in held}

    def holds(self, name: str, step: int) -> bool:
        return step <= self._last.get(_allowed(name), 0)

    def write(self, step: int, numbers: Mapping[str, float], pictures: Pictures) -> None:
        now = time.time_ns() // 1_000_000
        self._waiting += [self._metric(_allowed(name), value, now, step) for name, value in numbers.items()]
        for name, picture in pictures.items():
            self._client.log_image(self._id, picture, key=_allowed(name), step=step)
        if pictures or len(self._waiting) > self.NUMBERS or time.monotonic() - self._sent > self.SECONDS:
            self.flush()

    def flush(self) -> None:
        while self._waiting:
            self._client.log_batch(self._id, metrics=self._waiting[: self.NUMBERS])
            del self._waiting[: self.NUMBERS]
        self._sent = time.monotonic()

    def close(self, *, failed: bool) -> None:
        self.flush()
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")

    def _begin(self, run: Path) -> str:
        found = self._client.get_experiment_by_name(PROJECT)
        pictures = None if os.environ.get("MLFLOW_TRACKING_URI") else str(run.absolute() / "mlflow")
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT, pictures)
        return self._client.create_run(experiment, run_name=run.name).info.run_id


class _Trackio:
    """A run of the local project ``xd3d``, or of the server or Space that Trackio's environment variables name."""

    def __init__(self, run: Path, step: int) -> None:
        import trackio

        name = _identity(run / "trackio.json", lambda: f"{run.name}-{uuid4().hex[:6]}")
        self._trackio = trackio
        with redirect_stdout(sys.stderr):  # stdout is for the result of the command
            self._run = trackio.init(PROJECT, name=name, resume="allow", embed=False)
        remote = any(os.environ.get(variable) for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
        everything = self._run._next_step - 1 if remote else 0  # a server tells its last step alone
        self._last = defaultdict[str, int](lambda: everything)
        if not remote:
            held = trackio.sqlite_storage.SQLiteStorage.get_logs(PROJECT, name, run_id=self._run.id)
            self._last |= {key: row["step"] for row in sorted(held, key=itemgetter("step")) for key in row}

    def holds(self, name: str, step: int) -> bool:
        return step <= self._last[name]

    def write(self, step: int, numbers: Mapping[str, float], pictures: Pictures) -> None:
        images = {name: self._trackio.Image(picture) for name, picture in pictures.items()}
        self._run.log({**numbers, **images}, step=step)

    def flush(self) -> None:
        pass  # a thread of Trackio's writes twice a second

    def close(self, *, failed: bool) -> None:
        with redirect_stdout(sys.stderr):
            self._trackio.finish()


_KINDS: dict[str, Callable[[Path, int], Logger]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}


def _identity(path: Path, begin: Callable[[], str]) -> str:
    """Returns the id of a run in a logger; ``path`` keeps it from the run's first steps to its last."""
    if not path.exists():
        write_json(path, {"id": begin()})
    return read_json(path)["id"]


def _allowed(name: str) -> str:
    """Returns ``name`` with the characters that MLflow takes: classes may be called anything."""
    return re.sub(r"[^\w.\- :/]", "_", name)
