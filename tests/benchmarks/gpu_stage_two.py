"""Checks of stage two for ``gpu_check.py``: precision, speed, memory, and what a step copies and waits for."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from statistics import median
from typing import Any

import torch
from gpu_bench import PRECISIONS, Bench, CheckError, finished, peak_bytes
from torch.profiler import ProfilerActivity, profile
from xd3d.errors import CacheError
from xd3d.pipeline import jobs
from xd3d.pipeline.config import Config, load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.workspace import Workspace
from xd3d.prefetch import map_ahead
from xd3d.stages.train.device_transfer import prefetch
from xd3d.stages.train.domain import Domain
from xd3d.stages.train.network import Network, choose_taps
from xd3d.stages.train.optimise import Stepper, StepResult
from xd3d.stages.train.step_batch import StepMaker

VARIANTS = ("3d-only", "full")
#: How far the first loss may be from that of the CPU in float32, as a part of it.
LOSSES = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
#: What the profiler calls copies and waits, on a GPU and on the CPU.
COPIES = {True: ("Memcpy HtoD", "Memcpy DtoH", "Memcpy DtoD"), False: ("aten::copy_",)}
WAITS = {
    True: ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
    False: ("aten::_local_scalar_dense",),
}


def stage_two(bench: Bench) -> dict[str, Any]:
    """A few steps of the method in each precision, whose first loss must be near the CPU's in float32."""
    expected = first_losses(bench, "train.device=cpu", steps=1)[0]
    figures: dict[str, Any] = {"cpu float32": [expected]}
    wrong = []
    for precision in PRECISIONS:
        losses = first_losses(bench, f"train.precision={precision}", steps=bench.scale.steps)
        figures[precision] = losses
        off = abs(losses[0] - expected) / expected if losses else float("nan")
        if not off <= LOSSES[precision]:
            wrong.append(f"{precision}: {losses[:1]} where the CPU has {expected:.6f}")
    if wrong:
        raise CheckError(f"the first loss is another one: {'; '.join(wrong)}", figures)
    return figures


def first_losses(bench: Bench, *settings: str, steps: int) -> list[float]:
    """Losses of the first steps on the torch backend; a step that float16 leaves out has none."""
    config, source = cached_source(bench, bench.settings("model.backend=torch", *settings))
    with training(config, source, steps) as done:
        return [result.losses["loss"] for result in done if result.losses]


def cached_source(bench: Bench, settings: list[str]) -> tuple[Config, Domain]:
    """The config and its source with features from the cache, which is made if it is not there yet."""
    workspace = Workspace(home=bench.home)
    config = load_config(overrides=settings).config
    try:
        source = DomainOpener(workspace, config, cached=True).source()
    except CacheError:
        jobs.extract_features("nuscenes", "default", settings, None, retry_failed=False, workspace=workspace)
        source = DomainOpener(workspace, config, cached=True).source()
    if source is None:
        raise CheckError("the default preset has no source")
    return config, source


@contextmanager
def training(config: Config, source: Domain, steps: int) -> Iterator[Iterator[StepResult]]:
    """The results of ``steps`` steps, done as they are asked for, with batches made and sent ahead as in a run."""
    if not config.fusion.image:
        source = replace(source, features=None)
    device = torch.device(config.train.device)
    torch.manual_seed(config.train.seed)
    network = Network(
        model=config.model,
        fusion=config.fusion,
        classes=source.merge.classes,
        taps=choose_taps(config.fusion, source.features.taps if source.features else {}),
        cameras=len(source.index.cameras),
        device=device,
    )
    stepper = Stepper(network.train(), torch.ones(len(source.merge.classes), device=device), config.train)
    make = StepMaker(
        source=source,
        target=None,
        plan=network.plan,
        augment=config.augment,
        settings=config.train,
        device=device,
    )
    with (
        closing(map_ahead(make, range(steps), config.train.workers)) as made,
        closing(prefetch(made, device)) as batches,
    ):
        yield (stepper.step(step, islice(batches, 1)) for step in range(steps))


def stage_two_speed(bench: Bench) -> dict[str, Any]:
    """Milliseconds of a step from the cache and of one of LiDAR alone, in each precision, and peak memory.

    The features are those of the full-size model, so batches are as large as in earnest.
    """
    figures: dict[str, Any] = {}
    for precision in PRECISIONS if bench.cuda else ("float32",):
        times = {variant: step_times(bench, variant, precision) for variant in VARIANTS}
        figures[precision] = {
            **times,
            "ratio_full_to_lidar_only": times["full"]["milliseconds"] / times["3d-only"]["milliseconds"],
        }
    return figures


def step_times(bench: Bench, variant: str, precision: str) -> dict[str, float]:
    """Median milliseconds of a step, the share of them spent waiting for batches, and peak memory so far."""
    config, source = cached_source(bench, speed_run(bench, f"train.precision={precision}", f"fusion.variant={variant}"))
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    times, waits = [], []
    with training(config, source, bench.scale.timed_steps + 3) as steps:
        begin = time.perf_counter()
        for result in steps:
            finished(bench)
            now = time.perf_counter()
            times.append(now - begin)
            waits.append(result.waited)
            begin = now
    return {
        "milliseconds": 1e3 * median(times[3:]),
        "waiting": sum(waits[3:]) / sum(times[3:]),
        "peak_bytes": peak_bytes(bench),
    }


def speed_run(bench: Bench, *more: str) -> list[str]:
    """Settings of a run whose speed counts."""
    preset = f"model.preset={bench.scale.speed_preset}"
    return bench.speed_settings(preset, "fusion.image_channels=64", "fusion.tokens=100", "train.workers=2", *more)


def traffic(bench: Bench) -> dict[str, Any]:
    """What torch's profiler counts of a step of the method: copies, and waits for the device."""
    config, source = cached_source(bench, speed_run(bench))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.cuda else [])]
    count = bench.scale.timed_steps
    with training(config, source, count + 3) as steps:
        for _ in islice(steps, 3):
            finished(bench)
        with profile(activities=activities) as seen:
            for _ in steps:
                pass
    found = {event.key: event.count / count for event in seen.key_averages()}
    return {
        "copies_a_step": {key: number for key, number in found.items() if key.startswith(COPIES[bench.cuda])},
        "waits_a_step": {key: number for key, number in found.items() if key in WAITS[bench.cuda]},
        "kernels_a_step": sum(number for key, number in found.items() if "LaunchKernel" in key),
    }
