"""Which trainings an ablation needs: one a variant and seed, tested on every shift, or one for each shift."""

import hashlib
import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from ...errors import ConfigError
from ...settings import Mark, marked, unmarked_values
from ..config import Config, ResolvedConfig, load_config
from .benchmark import Benchmark
from .variants import PLACES, VARIANTS, Variant

__all__ = ["SHORT", "Request", "Training", "plan_trainings", "variant_digest"]

#: What the short form changes: enough steps to rank what differs much, and no more.
SHORT = ("train.steps=120", "train.milestones=[80, 110]", "train.validate_every=60", "train.checkpoint_every=60")

#: Layers of settings that all variants share.
SHARED = ("default", "ablation/base")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for: variants, shifts and seeds, in full or in the short form, with settings changed."""

    variants: Sequence[Variant]
    shifts: Sequence[str]
    seeds: Sequence[int]
    short: bool = False
    overrides: Sequence[str] = ()

    def settings(self, benchmark: Benchmark) -> tuple[str, ...]:
        """The settings that hold for every run, as KEY=VALUE."""
        return (*benchmark.overrides, *(SHORT if self.short else ()), *self.overrides)

    def check(self, benchmark: Benchmark) -> None:
        """Find faults in the settings before hours of work.

        Raises:
            ConfigError: a setting is unknown or out of range, is what a variant differs in, or is the runner's to give.
        """
        given = set(marked(Config, Mark.GIVEN))
        for variant in self.variants:
            own = {key for key, layer in load_config(variant.preset).origins.items() if layer not in SHARED}
            for key, layer in load_config(variant.preset, self.overrides).origins.items():
                if layer.startswith("--set") and key in own | given:
                    raise ConfigError(f"'{layer}' cannot be chosen here: {key} makes '{variant.name}' what it is")
            for seed in self.seeds:
                load_config(variant.preset, (*self.settings(benchmark), f"train.seed={seed}"))

    def command(self, variant: str, shift: str, seed: int) -> str:
        """The command line that makes one row."""
        options = [f"--only {variant} --shifts {shift} --seeds {seed}", *(["--short"] if self.short else [])]
        options += [f"--set {shlex.quote(text)}" for text in self.overrides]
        return " ".join(["xd3d ablate", *options])


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run and the shifts it is tested on; ``target`` is the shift it is trained for, if it is for one.

    ``start`` is the training whose best weights it begins with.
    """

    variant: Variant
    seed: int
    target: str | None
    shifts: tuple[str, ...]
    digest: str
    overrides: tuple[str, ...]
    start: "Training | None" = None

    @property
    def run(self) -> str:
        """Name of its run folder."""
        parts = [self.variant.name, *([self.target] if self.target else []), f"seed{self.seed}", self.digest[:8]]
        return "-".join(parts)

    @property
    def title(self) -> str:
        """What a person reads of it."""
        return f"{self.variant.name}{f' for {self.target}' if self.target else ''}, seed {self.seed}"

    def resolve(self) -> ResolvedConfig:
        """Its settings."""
        return load_config(self.variant.preset, self.overrides)


def plan_trainings(
    benchmark: Benchmark, request: Request, data: str, done: Collection[tuple[str, str, int, str]]
) -> list[Training]:
    """The trainings whose rows are not among ``done`` (keys of rows), in the order of their worth to the tables.

    ``data`` identifies the data set. Groups come one after the other, and in each the first seed of
    every variant before the second, so that an unfinished ablation can be read.
    """
    settings = request.settings(benchmark)
    trainings = []
    for variant in request.variants:
        make = partial(_training, benchmark, variant, settings, data)
        for seed in request.seeds:
            digest = variant_digest(benchmark, variant, settings, data)
            left = [shift for shift in request.shifts if (shift, variant.name, seed, digest) not in done]
            if variant.trained == "once":
                trainings += [make(seed, None, tuple(left))] if left else []
            else:
                trainings += [make(seed, shift, (shift,)) for shift in left]
    return sorted(trainings, key=lambda training: (PLACES[training.variant.name], training.seed))


def _training(
    benchmark: Benchmark,
    variant: Variant,
    settings: tuple[str, ...],
    data: str,
    seed: int,
    target: str | None,
    shifts: tuple[str, ...],
) -> Training:
    first = VARIANTS[variant.init] if variant.init else None
    return Training(
        variant=variant,
        seed=seed,
        target=target,
        shifts=shifts,
        digest=variant_digest(benchmark, variant, settings, data),
        overrides=(*settings, *_domains(benchmark, variant, target), f"train.seed={seed}"),
        start=_training(benchmark, first, settings, data, seed, None, shifts) if first else None,
    )


def variant_digest(benchmark: Benchmark, variant: Variant, settings: Sequence[str], data: str) -> str:
    """What identifies a variant's rows beside shift and seed: every setting that changes a result, and the data."""
    values = unmarked_values(load_config(variant.preset, settings).config, Mark.FREE)
    del values["train"]["seed"]
    values["data"] |= {"source": benchmark.source, "target": None}
    first = variant_digest(benchmark, VARIANTS[variant.init], settings, data) if variant.init else None
    identity = json.dumps([values, variant.trained, first, data], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _domains(benchmark: Benchmark, variant: Variant, target: str | None) -> tuple[str, str]:
    """Where a training gets its labels, and which side it is meant for: the development shift, where it is for all."""
    domain = benchmark.domains[target] if target else next(iter(benchmark.development.values()))
    source = domain if variant.trained == "on target" else benchmark.source
    return f"data.source.domain={source}", f"data.target.domain={domain}"
