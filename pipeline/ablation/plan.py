"""The data of the ablation and the trainings it needs: one per variant and seed, or one per shift too."""

import hashlib
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ...errors import ConfigError, DataError, nearest
from ...files import read_json
from ...settings import Mark, marked, unmarked_values
from ...stages.datasets.index import FrameIndex
from .. import jobs
from ..config import Config, ResolvedConfig, load_config
from ..workspace import Workspace
from .variants import GROUPS, Variant, initial_variant

__all__ = ["FEW_STREETS", "STREETS", "Benchmark", "Request", "Training", "plan_trainings", "variant_digest"]

#: Settings of the short form: enough steps to rank large differences.
SHORT = ("train.steps=100", "train.milestones=[65, 90]", "train.validate_every=50", "train.checkpoint_every=50")
SHARED_LAYERS = ("default", "ablation/base")  #: presets that all variants extend
CAMERAS = "CAM_FRONT"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One source domain and domains shifted from it, all of one data root.

    ``shifts`` are reported. ``development`` shifts are not: choices may be made on them, and the first one is the
    target of trainings that serve all shifts. ``fresh`` names the shifts on which no choice was ever made, ``default``
    those that are tested if none is named (empty: all reported ones). Without a ``root``, ``frames`` frames are
    synthesised beside the runs. ``overrides`` hold for every run, as KEY=VALUE.
    """

    source: str
    shifts: Mapping[str, str]
    development: Mapping[str, str]
    fresh: tuple[str, ...] = ()
    default: tuple[str, ...] = ()
    dataset: str = "nuscenes"
    root: Path | None = None
    frames: int = 1956
    overrides: Sequence[str] = ()

    @property
    def domains(self) -> dict[str, str]:
        """The domain of every shift, reported ones first."""
        return {**self.shifts, **self.development}

    def choose(self, names: Sequence[str]) -> list[str]:
        """Returns the shifts called ``names`` in the benchmark's order; without names the ``default`` ones.

        Raises:
            ConfigError: a name is unknown.
        """
        for name in names:
            if name not in self.domains:
                raise ConfigError(f"There is no shift '{name}' in the benchmark; {nearest(name, self.domains)}")
        return [name for name in self.domains if name in names] if names else list(self.default or self.shifts)

    def prepare(self, out: Path, workspace: Workspace) -> str:
        """Synthesises the data under ``out`` and indexes them where this is not done yet; returns their identity.

        The identity of synthetic data are the parameters of the synthesis: the geometry's last bits, and so the
        index's digest, differ between processors. The identity of other data is the index's digest.

        Raises:
            DataError: files of the root are missing or damaged.
        """
        from ...stages.synthesize.synthesize import FACTS

        root = self.root or out / "root"
        if self.root is None:
            jobs.synthesize(root, frames=self.frames, seed=0, cameras=CAMERAS, plan="benchmark")
        folder = workspace.index(self.dataset)
        if not (folder / "index.json").exists():
            done = jobs.prepare(self.dataset, root, version=None, cameras=CAMERAS, workspace=workspace)
            if done.exit_code:
                raise DataError(
                    f"The benchmark's data in {root} are damaged; delete that folder and run the command again:\n"
                    f"{done.text}"
                )
        return FrameIndex.load(folder).digest if self.root else json.dumps(read_json(root / FACTS), sort_keys=True)


_FRESH = ("dusk", "snow", "tilted")
STREETS = Benchmark(
    source="streets",
    shifts={name: f"streets-{name}" for name in ("city", "night", "fog", "sensor", *_FRESH)},
    development={name: f"streets-{name}" for name in ("development", "haze", "dim")},
    fresh=_FRESH,
)
#: The benchmark of the short form: two old and two new shifts, since UDA and the oracle are trained once for each.
FEW_STREETS = replace(STREETS, frames=391, default=("night", "sensor", "dusk", "tilted"))


@dataclass(frozen=True, kw_only=True)
class Request:
    """The variants, shifts and seeds asked for, in full or in the short form, with changed settings."""

    variants: Sequence[Variant]
    shifts: Sequence[str]
    seeds: Sequence[int]
    short: bool = False
    overrides: Sequence[str] = ()

    def settings(self, benchmark: Benchmark) -> tuple[str, ...]:
        """Returns the settings of every run, as KEY=VALUE."""
        return (*benchmark.overrides, *(SHORT if self.short else ()), *self.overrides)

    def check(self, benchmark: Benchmark) -> None:
        """Checks the settings before hours of work.

        Raises:
            ConfigError: a setting is unknown or out of range, distinguishes a variant, or is set by the ablation.
        """
        given = set(marked(Config, Mark.ABLATION))
        for variant in self.variants:
            own = {key for key, layer in load_config(variant.preset).origins.items() if layer not in SHARED_LAYERS}
            for key, layer in load_config(variant.preset, self.overrides).origins.items():
                if layer.startswith("--set") and key in own | given:
                    raise ConfigError(f"'{layer}' cannot be set here: {key} makes '{variant.name}' what it is")
            for seed in self.seeds:
                load_config(variant.preset, (*self.settings(benchmark), f"train.seed={seed}"))

    def command(self, variant: str, shift: str, seed: int) -> str:
        """Returns the command line that makes one row."""
        options = [f"--only {variant} --shifts {shift} --seeds {seed}", *(["--short"] if self.short else [])]
        options += [f"--set {shlex.quote(text)}" for text in self.overrides]
        return " ".join(["xd3d ablate", *options])


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run and the shifts it is tested on.

    ``target`` is its shift if it is trained for a single one. ``init`` is the training whose best weights it starts
    from.
    """

    variant: Variant
    seed: int
    target: str | None
    shifts: tuple[str, ...]
    digest: str
    overrides: tuple[str, ...]
    init: "Training | None" = None

    @property
    def run(self) -> str:
        """Name of the run folder, that of ``init`` if nothing is trained."""
        if self.variant.norm_window and self.init:
            return self.init.run
        parts = [self.variant.name, *([self.target] if self.target else []), f"seed{self.seed}", self.digest[:8]]
        return "-".join(parts)

    @property
    def title(self) -> str:
        """Name in log lines."""
        return f"{self.variant.name}{f' for {self.target}' if self.target else ''}, seed {self.seed}"

    @cached_property
    def resolved(self) -> ResolvedConfig:
        """The settings."""
        return load_config(self.variant.preset, self.overrides)


def plan_trainings(
    benchmark: Benchmark, request: Request, data: str, done: Collection[tuple[str, str, int, str]]
) -> list[Training]:
    """Returns the trainings whose rows are not among ``done`` (keys of rows), the most informative ones first.

    Groups follow each other, and in each group the first seed of every variant comes before the second: an unfinished
    ablation is readable. ``data`` identifies the data.
    """
    settings = request.settings(benchmark)
    trainings = []
    for variant in request.variants:
        digest = variant_digest(benchmark, variant, settings, data)
        for seed in request.seeds:
            left = [shift for shift in request.shifts if (shift, variant.name, seed, digest) not in done]
            targets: list[tuple[str | None, tuple[str, ...]]]
            if variant.trained == "once":
                targets = [(None, tuple(left))] if left else []
            else:
                targets = [(shift, (shift,)) for shift in left]
            trainings += [_training(benchmark, variant, settings, data, seed, *target) for target in targets]
    group_index = {variant.name: index for index, group in enumerate(GROUPS) for variant in group.variants}
    return sorted(trainings, key=lambda training: (group_index[training.variant.name], training.seed))


def _training(
    benchmark: Benchmark,
    variant: Variant,
    settings: tuple[str, ...],
    data: str,
    seed: int,
    target: str | None,
    shifts: tuple[str, ...],
) -> Training:
    shared = variant.target or next(iter(benchmark.development.values()))
    domain = benchmark.domains[target] if target else shared
    source = domain if variant.trained == "on target" else benchmark.source
    domains = (f"data.source.domain={source}", f"data.target.domain={domain}")
    init = initial_variant(variant)
    its_target = target if init is not None and init.trained != "once" else None
    return Training(
        variant=variant,
        seed=seed,
        target=target,
        shifts=shifts,
        digest=variant_digest(benchmark, variant, settings, data),
        overrides=(*settings, *domains, f"train.seed={seed}"),
        init=_training(benchmark, init, settings, data, seed, its_target, shifts) if init else None,
    )


def variant_digest(benchmark: Benchmark, variant: Variant, settings: Sequence[str], data: str) -> str:
    """Returns the digest of a variant's rows: of every setting that changes a result, and of the data; not the seed."""
    values = unmarked_values(load_config(variant.preset, settings).config, Mark.FREE)
    del values["train"]["seed"]
    values["data"] |= {"source": benchmark.source, "target": variant.target}
    init = initial_variant(variant)
    its_digest = variant_digest(benchmark, init, settings, data) if init else None
    adapted = [variant.norm_window] if variant.norm_window else []
    identity = json.dumps([values, variant.trained, its_digest, data, *adapted], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
