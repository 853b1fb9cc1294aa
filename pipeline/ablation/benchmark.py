"""The generalisation benchmark: one source domain, and domains that are each shifted from it in a way of its own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import ConfigError, DataError, nearest
from ...files import read_json
from .. import jobs
from ..workspace import Workspace

__all__ = ["FEW_STREETS", "STREETS", "Benchmark"]

CAMERAS = "CAM_FRONT"
FRESH = ("dusk", "snow", "tilted")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Domains of one data root, by what shifts in them.

    ``shifts`` are reported; choices may be made on ``development``, which is not. ``fresh`` names the shifts on which
    no choice was ever made. Of a run that is meant for all shifts the first of ``development`` is the target. Without a
    ``root`` the data are synthesised beside the runs, ``frames`` of them.
    """

    source: str
    shifts: Mapping[str, str]
    development: Mapping[str, str]
    fresh: tuple[str, ...] = ()
    dataset: str = "nuscenes"
    root: Path | None = None
    frames: int = 1956
    overrides: Sequence[str] = field(default_factory=tuple)  #: settings of every run, as KEY=VALUE

    @property
    def domains(self) -> dict[str, str]:
        """Every shift's domain, the reported ones first."""
        return {**self.shifts, **self.development}

    def choose(self, names: Sequence[str]) -> list[str]:
        """The shifts called ``names``, in the benchmark's order; with no name those that are reported.

        Raises:
            ConfigError: a name is not known.
        """
        for name in names:
            if name not in self.domains:
                raise ConfigError(f"There is no shift '{name}' in the benchmark; {nearest(name, self.domains)}")
        return [name for name in self.domains if name in names] if names else list(self.shifts)

    def prepare(self, out: Path, workspace: Workspace) -> str:
        """Make the data under ``out`` where they are not there yet, index them, and return what identifies them.

        Of synthesised data these are the facts they are made from: another processor gives their geometry other last
        bits, and the index another digest, but they are the same city. Of others it is the index's digest.

        Raises:
            DataError: files of the root are missing or damaged.
        """
        from ...stages.datasets.index import FrameIndex
        from ...stages.synthesize.synthesize import FACTS

        root = self.root or out / "root"
        if self.root is None:
            jobs.synthesize_city(root, frames=self.frames, seed=0, cameras=CAMERAS, plan="benchmark")
        folder = workspace.index(self.dataset)
        if not (folder / "index.json").exists():
            done = jobs.prepare(workspace, self.dataset, root, version=None, cameras=CAMERAS)
            if done.exit_code:
                raise DataError(
                    f"The benchmark's data in {root} have faults; delete that folder and go on:\n{done.text}"
                )
        return FrameIndex.load(folder).digest if self.root else json.dumps(read_json(root / FACTS), sort_keys=True)


STREETS = Benchmark(
    source="streets",
    shifts={name: f"streets-{name}" for name in ("city", "night", "fog", "sensor", *FRESH)},
    development={name: f"streets-{name}" for name in ("development", "haze", "dim")},
    fresh=FRESH,
)

#: The same with few frames, for the short form.
FEW_STREETS = replace(STREETS, frames=391)
