"""The initial checkpoint: the trained weights of another run that a run starts from (``train.init``)."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ...errors import RunError
from ...fingerprint import differences
from ...settings import Mark, marked, with_added
from .checkpoint import best_step, checkpoint_digest, checkpoint_steps, load_backbone, load_weights
from .network import Network
from .record import PRETRAINED, camera_count, read_record
from .settings import FusionSettings, ModelSettings

__all__ = ["InitialCheckpoint"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InitialCheckpoint:
    """The best checkpoint of ``run``, whose ``run.json`` is ``record``."""

    run: Path
    step: int
    record: Mapping[str, Any]

    @classmethod
    def open(cls, run: Path) -> "InitialCheckpoint":
        """Finds the best checkpoint of ``run``, or the last one if it was never validated.

        Raises:
            RunError: the run does not exist, or has no checkpoint yet.
        """
        return cls(run=run, record=read_record(run), step=best_step(run))

    @property
    def pretrained(self) -> bool:
        """Whether it was made by 'xd3d pretrain'; then only the 3D network without its heads is loaded."""
        return self.record.get("kind") == PRETRAINED

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches that the running statistics of BatchNorm cover, from which they continue.

        They include those of the run that it started from itself. 0 after pretraining: its statistics are estimated
        anew, because the weights change as much as from scratch.
        """
        before = self.record.get("init") or {}
        continued = before.get("micro_batches", before.get("step", 0))  # earlier versions recorded the step alone
        return 0 if self.pretrained else continued + self.step * self.record["train"]["accumulate"]

    def identity(self) -> dict[str, Any]:
        """Returns the run's name, and the step and digest of its weights, as JSON."""
        return {"run": self.run.name, "step": self.step, "checkpoint": checkpoint_digest(self.run, self.step)}

    def require_same_network(self, record: Mapping[str, Any]) -> None:
        """Checks that the network of ``record``, that of a new run, fits these weights.

        Raises:
            RunError: it is a different network; the message names each setting that differs.
        """
        facts = _backbone if self.pretrained else partial(_network, cameras=self._distinguishes_cameras)
        lines = differences(facts(self.record), facts(record))
        if lines:
            listed = "\n".join(f"  {line[:300]}" for line in lines)
            raise RunError(
                f"The weights of {self.run} (train.init) belong to another network (expected: theirs, found: yours):\n"
                f"{listed}\nUse the settings of that run"
            )

    @property
    def _distinguishes_cameras(self) -> bool:
        """Whether the weights depend on the number of cameras."""
        return FusionSettings.model_construct(**self.record["fusion"]).interface

    def load(self, network: Network) -> None:
        """Loads the weights into ``network``; a warning is logged if their run is not finished."""
        done, planned = checkpoint_steps(self.run)[-1], self.record["train"]["steps"]
        if done < planned:
            log.warning("The run %s (train.init) is not finished: it has done %d of %d steps", self.run, done, planned)
        if not self.pretrained:
            load_weights(self.run, network, self.step)
            return
        load_backbone(self.run, network.unet, self.step)
        if network.lidar_branch is not None:
            network.lidar_branch.copy_decoder(network.unet)


def _backbone(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the 3D network of a record without its heads depends on."""
    free = {*marked(ModelSettings, Mark.MACHINE), "head"}
    return {"model": _settings(ModelSettings, record["model"], free)}


def _network(record: Mapping[str, Any], *, cameras: bool) -> dict[str, Any]:
    """Returns what the network of a record, and the features it reads, depend on; ``cameras``: on their number too."""
    uses_images = bool(record["taps"])
    return {
        "model": _settings(ModelSettings, record["model"], marked(ModelSettings, Mark.MACHINE)),
        "fusion": _settings(FusionSettings, record["fusion"], marked(FusionSettings, Mark.TRAINING_ONLY)),
        "classes": record["classes"],
        "cameras": camera_count(record) if cameras else None,
        "taps": {name: spec["channels"] for name, spec in record["taps"].items()},
        "extract": record["facts"].get("extract") if uses_images else None,
    }


def _settings(kind: type[BaseModel], recorded: Mapping[str, Any], free: Collection[str]) -> dict[str, Any]:
    """Returns the recorded settings of ``kind`` with omitted defaults, without the keys ``free``."""
    return {key: value for key, value in with_added(kind, recorded).items() if key not in free}
