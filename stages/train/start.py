"""Where a run's weights come from when it begins with those of another run, and what goes with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import RunError
from ...fingerprint import differences
from ...settings import Mark, marked
from .checkpoint import best_step, checkpoint_digest, load_weights
from .network import Network
from .record import camera_count, read_record
from .settings import FusionSettings, ModelSettings

__all__ = ["Start"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The best checkpoint of ``run``; ``record`` is what that run keeps of itself."""

    run: Path
    step: int
    record: Mapping[str, Any]

    @classmethod
    def open(cls, run: Path) -> "Start":
        """Find the best checkpoint of ``run``, the last where nothing was validated.

        Raises:
            RunError: there is no such run, or it has no checkpoint yet.
        """
        return cls(run=run, record=read_record(run), step=best_step(run))

    def identity(self) -> dict[str, Any]:
        """The run's name and the step and digest of its weights, as JSON."""
        return {"run": self.run.name, "step": self.step, "checkpoint": checkpoint_digest(self.run, self.step)}

    def require_same_network(self, record: Mapping[str, Any]) -> None:
        """Check that the network of ``record``, a new run's, is the one these weights belong to.

        Raises:
            RunError: it is another one; the message names each setting that differs.
        """
        lines = differences(_network(self.record), _network(record))
        if lines:
            listed = "\n".join(f"  {line[:300]}" for line in lines)
            raise RunError(
                f"The weights of {self.run} (train.init) belong to another network (expected: theirs, found: yours):\n"
                f"{listed}\nUse the settings of that run"
            )

    def load(self, network: Network) -> None:
        """Put the weights into ``network``."""
        load_weights(self.run, network, self.step)


def _network(record: Mapping[str, Any]) -> dict[str, Any]:
    """All of a record that a network and its features depend on."""
    uses_images = bool(record["taps"])
    free = {*marked(ModelSettings, Mark.MACHINE), *marked(FusionSettings, Mark.TRAINING_ONLY)}
    return {
        "model": {key: value for key, value in record["model"].items() if key not in free},
        "fusion": {key: value for key, value in record["fusion"].items() if key not in free},
        "classes": record["classes"],
        "cameras": camera_count(record),
        "taps": {name: spec["channels"] for name, spec in record["taps"].items()},
        "extract": record["facts"].get("extract") if uses_images else None,
    }
