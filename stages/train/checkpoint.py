"""Checkpoints: each is a folder of safetensors and one JSON file, which appears atomically.

A checkpoint is written into ``step-N.partial``, flushed, and renamed to ``step-N``; only then are older ones removed.
So a kill at any moment leaves the last complete checkpoint, and a run resumed from it repeats the lost steps exactly.
``state.json`` has the crc32 of each file of tensors and a digest of itself, because safetensors has no checksums.
"""

import hashlib
import logging
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ...errors import RunError
from ...files import fsync_folder, read_json, write_bytes, write_json
from ...fingerprint import fingerprint_digest

__all__ = [
    "Best",
    "TrainState",
    "best_step",
    "checkpoint_digest",
    "checkpoint_steps",
    "load_backbone",
    "load_state",
    "load_weights",
    "read_best",
    "save_checkpoint",
]

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
PARTIAL = ".partial"
STATISTICS = "image_statistics."  #: buffers of the network
BACKBONE = "unet."  #: weights of the 3D network below its heads
#: Names of complete and partial checkpoints; other folders beside them are neither read nor removed.
_NAME = re.compile(r"step-(\d{8,})(\.partial)?")


@dataclass(frozen=True, kw_only=True)
class Best:
    """The step with the highest validation mIoU so far; ``metric`` is "fused" or "xm", or "3d" without images."""

    step: int
    metric: str
    miou: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainState:
    """Everything that a step changes: network, optimiser, the scale of the loss in float16, and the teacher if any."""

    network: nn.Module
    optimiser: Optimizer
    scaler: GradScaler
    teacher: nn.Module | None = None


def checkpoint_steps(run: Path) -> list[int]:
    """Returns the steps of the complete checkpoints of ``run``, in rising order."""
    return sorted(step for step, path in _checkpoints(run) if path.suffix != PARTIAL)


def save_checkpoint(run: Path, state: TrainState, *, step: int, best: Best | None) -> None:
    """Saves the checkpoint of ``step``; deletes all others but the best one.

    If it cannot be written, for example on a full disk, the partial folder is removed and the others are kept.

    Raises:
        RunError: a weight is not finite.
    """
    _require_finite(state.network, step)
    final = _folder(run, step)
    partial = final.with_name(final.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(partial, state, step, best)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    fsync_folder(final.parent)
    kept = {_folder(run, each) for each in (step, best.step if best else step)}
    for _, path in _checkpoints(run):
        if path not in kept:
            shutil.rmtree(path)


def _require_finite(network: nn.Module, step: int) -> None:
    bad = [name for name, values in network.state_dict().items() if not values.isfinite().all()]
    if bad:
        raise RunError(
            f"Training has diverged: after step {step}, {len(bad)} tensors of the network are not finite ({bad[0]} the"
            " first). Start another run with a lower train.lr; the checkpoint before it is kept"
        )


def load_state(run: Path, state: TrainState, step: int) -> Best | None:
    """Loads the checkpoint of ``step`` into ``state``; returns the best validation up to then.

    Raises:
        RunError: the checkpoint does not exist, is damaged, or belongs to another network.
    """
    load_weights(run, state.network, step)
    parameters = dict(state.network.named_parameters())
    for path, value in _read_tensors(run, step, "optimiser").items():
        name, _, key = path.rpartition("/")
        parameter = parameters[name]
        state.optimiser.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    if state.teacher is not None:
        state.teacher.load_state_dict(_read_tensors(run, step, "teacher"))
    stored = _read_state(run, step)
    state.scaler.load_state_dict(stored["scaler"])
    return _best(stored)


def load_weights(run: Path, network: nn.Module, step: int) -> None:
    """Loads the weights of the checkpoint of ``step`` into ``network``.

    Early checkpoints have no image statistics; those of ``network`` are then left unchanged.

    Raises:
        RunError: the checkpoint does not exist, is damaged, or belongs to another network.
    """
    tensors = _read_tensors(run, step, "model")
    if not any(name.startswith(STATISTICS) for name in tensors):
        tensors |= {name: value for name, value in network.state_dict().items() if name.startswith(STATISTICS)}
    _load(run, step, network, tensors)


def load_backbone(run: Path, unet: nn.Module, step: int) -> None:
    """Loads the 3D network of the checkpoint of ``step``, without heads and all else, into ``unet``.

    Raises:
        RunError: the checkpoint does not exist, is damaged, or belongs to another network.
    """
    tensors = _read_tensors(run, step, "model")
    found = {name.removeprefix(BACKBONE): value for name, value in tensors.items() if name.startswith(BACKBONE)}
    _load(run, step, unet, found)


def _load(run: Path, step: int, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(
            f"The weights in {_tensors(run, step, 'model')} do not fit the network of the run's settings: {error}"
        ) from error


def checkpoint_digest(run: Path, step: int) -> str:
    """Returns the sha256 of the weights file of the checkpoint of ``step``.

    Raises:
        RunError: the file cannot be read.
    """
    path = _tensors(run, step, "model")
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise _damaged(path, error) from error


def read_best(run: Path, step: int) -> Best | None:
    """Returns the best validation up to the checkpoint of ``step``.

    Raises:
        RunError: the checkpoint does not exist or is damaged.
    """
    return _best(_read_state(run, step))


def _best(stored: Mapping[str, Any]) -> Best | None:
    return Best(**stored["best"]) if stored["best"] else None


def _read_state(run: Path, step: int) -> dict[str, Any]:
    """Reads and verifies ``state.json``: the best validation, the scale of the loss, and the checksums."""
    path = _folder(run, step) / "state.json"
    try:
        stored = read_json(path)
        digest = stored.pop("digest", None)
        _check(digest == (fingerprint_digest(stored) if "crc32" in stored else None))
        return {"best": stored["best"], "scaler": stored["scaler"], "crc32": stored.get("crc32", {})}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def best_step(run: Path) -> int:
    """Returns the step of the checkpoint to predict with: the best one, or the last if there was no validation.

    If the best one was deleted, the last one is used, with a warning.

    Raises:
        RunError: there is no checkpoint yet, or the last one is damaged.
    """
    steps = checkpoint_steps(run)
    if not steps:
        raise RunError(
            f"{run} has no checkpoint yet; let the command that started it continue, or name another run"
            " (--run, train.init)"
        )
    best = read_best(run, steps[-1])
    if best is not None and best.step not in steps:
        log.warning("The best checkpoint of %s, step %d, is missing; the last one is used", run, best.step)
    return best.step if best is not None and best.step in steps else steps[-1]


def _folder(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}"


def _tensors(run: Path, step: int, name: str) -> Path:
    return _folder(run, step) / f"{name}.safetensors"


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Returns the step and folder of each checkpoint of ``run``, including partial ones."""
    folders = [path for path in (run / FOLDER).glob("step-*") if path.is_dir()]
    return [(int(found[1]), path) for path in folders if (found := _NAME.fullmatch(path.name))]


def _optimiser_tensors(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in state.network.named_parameters()
        for key, value in state.optimiser.state.get(parameter, {}).items()
    }


def _write(folder: Path, state: TrainState, step: int, best: Best | None) -> None:
    """Fills ``folder`` with the files of a checkpoint."""
    sums = {
        "model": _write_tensors(folder / "model.safetensors", state.network.state_dict()),
        "optimiser": _write_tensors(folder / "optimiser.safetensors", _optimiser_tensors(state)),
    }
    if state.teacher is not None:
        sums["teacher"] = _write_tensors(folder / "teacher.safetensors", state.teacher.state_dict())
    facts = {
        "step": step,
        "best": vars(best) if best else None,
        "scaler": state.scaler.state_dict(),
        "crc32": sums,
    }
    write_json(folder / "state.json", {**facts, "digest": fingerprint_digest(facts)})


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Writes ``tensors``; returns the crc32 of the file."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_bytes(path, content)
    return zlib.crc32(content)


def _read_tensors(run: Path, step: int, name: str) -> dict[str, Tensor]:
    """Reads the tensors of one file and verifies its crc32, which checkpoints of the first versions lack."""
    path, expected = _tensors(run, step, name), _read_state(run, step)["crc32"].get(name)
    try:
        content = path.read_bytes()
        _check(expected in (None, zlib.crc32(content)))
        return load(content)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _check(as_written: bool) -> None:
    if not as_written:
        raise ValueError("its content does not match its checksum")


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"The checkpoint file {path} is damaged ({error}); delete its folder and train again: the run resumes from"
        " the checkpoint before it, if there is one, or starts anew"
    )
