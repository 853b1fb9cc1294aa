"""Checkpoints: a folder of safetensors and one JSON file, which appears whole or not at all.

A checkpoint is written into ``step-N.partial``, flushed, and renamed to ``step-N``; only then are older ones removed.
So ``kill -9`` at any moment leaves the last whole checkpoint, and a run resumed from it repeats what was lost exactly.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ...errors import RunError
from ...files import fsync_folder, read_json, write_atomic, write_json

__all__ = [
    "Best",
    "TrainState",
    "best_step",
    "checkpoint_digest",
    "checkpoint_steps",
    "load_state",
    "load_weights",
    "read_best",
    "save_checkpoint",
]

FOLDER = "checkpoints"
PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True)
class Best:
    """The step with the highest validation mIoU so far; ``metric`` is "xm", or "3d" where no image is used."""

    step: int
    metric: str
    miou: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainState:
    """All that a step changes: the network, Adam, and the scale of the loss in float16."""

    network: nn.Module
    optimiser: Optimizer
    scaler: GradScaler


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the whole checkpoints of ``run``, rising."""
    folders = (run / FOLDER).glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in folders if path.suffix != PARTIAL)


def save_checkpoint(run: Path, state: TrainState, *, step: int, best: Best | None) -> None:
    """Publish the checkpoint of ``step`` and keep it, the best one, and no other."""
    final = _folder(run, step)
    partial = final.with_name(final.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, tensors in (
        ("model", state.network.state_dict()),
        ("optimiser", _optimiser_tensors(state)),
    ):
        _write_tensors(partial / f"{name}.safetensors", tensors)
    write_json(
        partial / "state.json",
        {"step": step, "best": vars(best) if best else None, "scaler": state.scaler.state_dict()},
    )
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    fsync_folder(final.parent)
    kept = {step, best.step if best else step}
    for path in (run / FOLDER).iterdir():
        if path not in {_folder(run, each) for each in kept}:
            shutil.rmtree(path)


def load_state(run: Path, state: TrainState, step: int) -> Best | None:
    """Put the checkpoint of ``step`` into ``state``; return the best known then."""
    load_weights(run, state.network, step)
    stored = _read_tensors(_folder(run, step) / "optimiser.safetensors")
    parameters = dict(state.network.named_parameters())
    for path, value in stored.items():
        name, key = path.rsplit("/", 1)
        parameter = parameters[name]
        state.optimiser.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    best, scaler = _read_state(run, step)
    state.scaler.load_state_dict(scaler)
    return best


def load_weights(run: Path, network: nn.Module, step: int) -> None:
    """Put the weights of the checkpoint of ``step`` into ``network``.

    Raises:
        RunError: there is no such checkpoint, or it is damaged or made by another network.
    """
    path = _folder(run, step) / "model.safetensors"
    try:
        network.load_state_dict(_read_tensors(path))
    except RuntimeError as error:
        raise RunError(f"The weights in {path} do not fit the network of the run's settings: {error}") from error


def checkpoint_digest(run: Path, step: int) -> str:
    """sha256 of the file of weights of the checkpoint of ``step``."""
    path = _folder(run, step) / "model.safetensors"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise _damaged(path, error) from error


def read_best(run: Path, step: int) -> Best | None:
    """The best validation known at the checkpoint of ``step``."""
    return _read_state(run, step)[0]


def _read_state(run: Path, step: int) -> tuple[Best | None, dict[str, Any]]:
    """The best validation, and the state of the loss's scale."""
    path = _folder(run, step) / "state.json"
    try:
        stored = read_json(path)
        return Best(**stored["best"]) if stored["best"] else None, stored["scaler"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"The checkpoint {path.parent} is damaged ({error}); delete that folder and train again"
        ) from error


def best_step(run: Path) -> int:
    """The step of the checkpoint to predict with: the best one known, or the last where nothing was validated.

    Raises:
        RunError: there is no checkpoint yet, or the last one is damaged.
    """
    steps = checkpoint_steps(run)
    if not steps:
        raise RunError(f"{run} has no checkpoint yet; let 'xd3d train' go on")
    best = read_best(run, steps[-1])
    return best.step if best else steps[-1]


def _folder(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}"


def _optimiser_tensors(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in state.network.named_parameters()
        for key, value in state.optimiser.state.get(parameter, {}).items()
    }


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomic(path, lambda file: file.write(content))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"The checkpoint file {path} cannot be read ({error}); delete its folder and train again")
