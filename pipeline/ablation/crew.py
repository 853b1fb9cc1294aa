"""Child processes that train, a few at once, each with its share of the threads; a failed one leaves the rest alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files import read_json
from ...processes import threads_each
from ...progress import progress
from ...stages.train.log import read_log
from ..workspace import Workspace
from .benchmark import Benchmark
from .child import SOURCE, Task
from .plan import Training

__all__ = ["Crew", "Finished"]

POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A training that ended: its ``result``, or the ``reason`` why there is none."""

    training: Training
    result: Mapping[str, Any] | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Active:
    training: Training
    process: "subprocess.Popen[str]"
    result: Path
    log: Path


class Crew:
    """``size`` processes at once; their logs and results lie in ``folder``."""

    def __init__(self, *, size: int, folder: Path, workspace: Workspace, benchmark: Benchmark) -> None:
        self.folder, self.workspace, self.benchmark, self.size = folder, workspace, benchmark, size
        self.threads = threads_each(size)
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, trainings: Sequence[Training]) -> Iterator[Finished]:
        """Do all of ``trainings`` and yield each as it ends; a bar counts the steps of all of them."""
        waiting, active = list(trainings), list[_Active]()
        steps = {training.run: _steps(training) for training in trainings}
        done = {training.run: self._steps_done(training) for training in trainings}
        try:
            with progress("ablate", sum(steps.values()), "step", sum(done.values())) as bar:
                while waiting or active:
                    while len(active) < self.size and (ready := _ready(waiting, active)):
                        waiting.remove(ready)
                        active.append(self._start(ready))
                    time.sleep(POLL_SECONDS)
                    for each in [each for each in active if each.process.poll() is not None]:
                        active.remove(each)
                        done[each.training.run] = steps[each.training.run]
                        yield _conclude(each)
                    done |= {each.training.run: self._steps_done(each.training) for each in active}
                    if (more := sum(done.values()) - bar.n) > 0:
                        bar.update(more)
        finally:
            _end(active)

    def _start(self, training: Training) -> _Active:
        result, log = (self.folder / f"{training.run}.{kind}" for kind in ("json", "log"))
        result.unlink(missing_ok=True)
        task = Task(
            **_order(training),
            start=_order(training.start) if training.start else None,
            domains={
                **{shift: self.benchmark.domains[shift] for shift in training.shifts},
                SOURCE: self.benchmark.source,
            },
            result=str(result),
        )
        environment = {**os.environ, "XD3D_HOME": str(self.workspace.home), "OMP_NUM_THREADS": str(self.threads)}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "xd3d.pipeline.ablation.child"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                env=environment,
            )
        _tell(process, json.dumps(asdict(task)))
        return _Active(training=training, process=process, result=result, log=log)

    def _steps_done(self, training: Training) -> int:
        records = read_log(self.workspace.run(training.run))
        own = int(records[-1]["step"]) if records else 0
        return own + (self._steps_done(training.start) if training.start else 0)


def _steps(training: Training) -> int:
    """Steps of a training and of the one it begins with, which it waits for."""
    return training.resolve().config.train.steps + (_steps(training.start) if training.start else 0)


def _order(training: Training) -> dict[str, Any]:
    return {"preset": training.variant.preset, "overrides": list(training.overrides), "run": training.run}


def _ready(waiting: Sequence[Training], active: Sequence[_Active]) -> Training | None:
    """The first of ``waiting`` that neither is, nor begins with, a run that is being trained."""
    trained = [each.training for each in active]
    busy = {each.run for each in (*trained, *(each.start for each in trained if each.start))}
    return next((each for each in waiting if not busy & {each.run, each.start.run if each.start else ""}), None)


def _tell(process: "subprocess.Popen[str]", line: str) -> None:
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # it is dead already, and its end says why
            process.stdin.write(line + "\n")
            process.stdin.flush()


def _close(process: "subprocess.Popen[str]") -> int:
    """Wait for the end of ``process``; its exit code."""
    code = process.wait()
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    return code


def _conclude(active: _Active) -> Finished:
    code = _close(active.process)
    if code == 0:
        return Finished(training=active.training, result=read_json(active.result))
    lines = active.log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.split("\r")[-1].strip() for line in lines if line.strip()]
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return Finished(training=active.training, reason=f"{how}: {said[-1] if said else 'it said nothing'} ({active.log})")


def _end(active: Sequence[_Active]) -> None:
    """Stop what still runs; its checkpoints stay, and it goes on from them in the next call."""
    for each in active:
        each.process.kill()
    for each in active:
        _close(each.process)
