"""Checks of whole runs for ``gpu_check.py``: cached against online, a kill and its resume, and two processes."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_bench import Bench, CheckError, NotHereError, last
from xd3d.stages.train.run_log import read_log

#: How far losses of runs on a GPU may be from each other, as a part of them: some sums there have no fixed order, and
#: Adam makes whole steps of the rounding of gradients near zero. On the CPU they must be equal.
FIRST, LATER = 1e-3, 0.1
JOINED = 1e-3  #: of two processes from one, whose sums are in another order on the CPU too


def cached_online(bench: Bench) -> dict[str, Any]:
    """Losses of a run from the cache, and of one with the diffusion model in the loop."""
    settings = extracted(bench, bench.scale.steps)
    bench.run(bench.command("train", "--cached", "--run", "from-cache", settings=settings))
    bench.run(bench.command("train", "--run", "online", settings=settings))
    cached, online = losses(bench, "from-cache"), losses(bench, "online")
    return compared(bench, {"cached": cached, "online": online})


def kill_resume(bench: Bench) -> dict[str, Any]:
    """A run whose process is killed after its first checkpoint and that goes on, and one that was left alone."""
    settings = extracted(bench, bench.scale.long_steps, f"train.checkpoint_every={bench.scale.checkpoint_every}")
    bench.run(bench.command("train", "--cached", "--run", "unbroken", settings=settings))
    command = bench.command("train", "--cached", "--run", "broken", settings=settings)
    reached = killed_at(bench, command, bench.home / "runs" / "broken")
    bench.run(command)
    unbroken, broken = losses(bench, "unbroken"), losses(bench, "broken")
    return {"killed_at_step": reached, **compared(bench, {"unbroken": unbroken, "broken": broken})}


def killed_at(bench: Bench, command: list[str], run: Path) -> int:
    """Kill the process of ``command`` once ``run`` has a checkpoint; the step that its log has reached."""
    process = subprocess.Popen(
        command, env=bench.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + 180
        while not any((run / "checkpoints").glob("[!.]*")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
    finally:
        process.kill()
        _, errors = process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise CheckError(f"the run ended with code {process.returncode} before it could be killed: {last(errors)}")
    return max((record["step"] for record in read_log(run)), default=0)


def two_processes(bench: Bench) -> dict[str, Any]:
    """Losses of two processes (NCCL; on the CPU gloo) with a frame each, and of one with both."""
    import torch

    if bench.cuda and torch.cuda.device_count() < 2:
        raise NotHereError(f"it takes two GPUs, and PyTorch sees {torch.cuda.device_count()}")
    settings = extracted(bench, bench.scale.steps)
    one = bench.run(bench.command("train", "--cached", settings=settings))
    halves = bench.command("train", "--cached", settings=[*settings, "train.batch_size=1"])
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = bench.run([sys.executable, *together, *halves[1:]])
    found = {"one": losses(bench, one["run"]), "two": losses(bench, two["run"])}
    return compared(bench, found, limits=(JOINED, LATER))


def extracted(bench: Bench, steps: int, *more: str) -> list[str]:
    """Settings of runs of so many steps, whose features are in the cache then."""
    settings = bench.settings(f"train.steps={steps}", f"train.validate_every={steps}", "train.workers=1", *more)
    bench.run(bench.command("extract-features", "--dataset", "nuscenes", settings=settings))
    return settings


def losses(bench: Bench, run: str) -> dict[int, float]:
    """The loss of each step of a run, a name or a folder."""
    return {record["step"]: record["loss"] for record in read_log(bench.home / "runs" / run) if "loss" in record}


def compared(
    bench: Bench, runs: dict[str, dict[int, float]], limits: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Both runs' losses and their largest difference; ``limits``: of the first step's and of any.

    Raises:
        CheckError: a run lacks steps of the other, or they are too far from each other.
    """
    (name, one), (other_name, other) = runs.items()
    if one.keys() != other.keys() or not one:
        raise CheckError(f"'{name}' has the steps {sorted(one)}, '{other_name}' {sorted(other)}")
    off = {step: abs(one[step] - other[step]) / abs(other[step]) for step in one}
    figures = {
        "steps": len(one),
        "equal": one == other,
        "first_difference": off[min(off)],
        "largest_difference": max(off.values()),
        "first_losses": {name: list(one.values())[:3], other_name: list(other.values())[:3]},
    }
    first, later = limits or ((FIRST, LATER) if bench.cuda else (0.0, 0.0))
    if not (figures["first_difference"] <= first and figures["largest_difference"] <= later):
        raise CheckError(f"losses of '{name}' and '{other_name}' differ by {max(off.values()):.3g} of them", figures)
    return figures
