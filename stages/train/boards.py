"""Where a run's numbers are drawn while it goes on: TensorBoard and Weights & Biases, each behind its extra."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

from ...errors import RunError
from ...files import read_json, write_json

__all__ = ["Board", "open_boards"]

WANDB_FILE = "wandb.json"


@runtime_checkable
class Board(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Draw ``numbers`` at ``step``."""

    def close(self) -> None:
        """Bring everything to its place."""


def open_boards(run: Path, *, step: int, tensorboard: bool, wandb: bool) -> list[Board]:
    """The boards that were asked for, for a run that has done ``step`` steps.

    Raises:
        RunError: one is not installed.
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
    """A resumed run goes on under the identity that it keeps in its folder; ``step`` is drawn along the x axis."""

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
