"""The ablation from data to tables: extracts features, trains missing runs in child processes, publishes the rows."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import RunError, Xd3dError
from ...files import read_json
from ...locks import exclusive_lock
from ...processes import threads_each
from ...progress import progress
from ...stages.train.log import read_log
from .. import jobs
from ..console import Outcome
from ..domains import DomainOpener
from ..workspace import Workspace
from .child import SOURCE, Task
from .figures import draw_learned
from .plan import Benchmark, Request, Training, plan_trainings
from .results import Publisher, Results
from .rows import Row, RowFile

__all__ = ["run_ablation"]

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5


def run_ablation(
    out: Path, benchmark: Benchmark, request: Request, *, processes: int, docs: Path | None = None
) -> Outcome:
    """Makes every row of ``request`` that ``out`` lacks, and writes the results of all rows after each run.

    It may be stopped at any time: the same call resumes from the finished rows and from the checkpoints of unfinished
    runs. ``docs`` is a folder whose ``results.md`` and ``results.json`` are updated too; rows published there count as
    done, so another machine can continue.

    Raises:
        ConfigError: a setting is unknown or out of range, or may not be set.
        DataError: ``docs`` holds something else, or rows of other settings.
        RunError: another process works in ``out``, or the disk is too small for the features.
    """
    request.check(benchmark)
    out = out.absolute()
    with exclusive_lock(out, work="runs 'xd3d ablate'", option="--out"):
        workspace = Workspace(home=out / "work")
        data = benchmark.prepare(out, workspace)
        rows = RowFile(out / "rows.jsonl")
        publisher = Publisher(benchmark=benchmark, request=request, data=data, rows=rows, out=out, docs=docs)
        results = publisher.publish({})
        trainings = plan_trainings(benchmark, request, data, {row.key for row in rows.rows})
        failed = _extract(workspace, benchmark, trainings)
        ready = [training for training in trainings if training.run not in failed]
        log.info("%d runs to train, %d rows exist", len(ready), len(results.rows))
        pool = _WorkerPool(size=processes, folder=out / "logs", workspace=workspace, benchmark=benchmark)
        for finished in pool.run(ready):
            failed |= _record(finished, rows, request)
            results = publisher.publish(failed)
        draw_learned(workspace, benchmark, list(results.rows), out)
        results = publisher.publish(failed)
    return _outcome(out, results, failed)


def _extract(workspace: Workspace, benchmark: Benchmark, trainings: Sequence[Training]) -> dict[str, str]:
    """Extracts the features of ``trainings``, once per cache; returns the error of each run whose cache failed."""
    failed: dict[str, str] = {}
    readers: dict[tuple[str, object], list[Training]] = {}
    for training in trainings:
        config = training.resolve().config
        if config.fusion.image:
            try:
                path = str(DomainOpener(workspace, config, cached=True).cache_path(benchmark.dataset))
                part = (config.extract.models, config.extract.taps)  # a cache of several networks grows
            except Xd3dError as error:
                failed[training.run] = str(error)
            else:
                readers.setdefault((path, part), []).append(training)
    _require_disk_space(workspace, benchmark, [first for first, *_ in readers.values()])
    for first, *others in readers.values():
        if reason := _extract_one(workspace, benchmark, first):
            failed |= {training.run: reason for training in (first, *others)}
    return failed


def _require_disk_space(workspace: Workspace, benchmark: Benchmark, trainings: Sequence[Training]) -> None:
    """Logs the expected size of the caches of ``trainings`` and checks the free disk space.

    Raises:
        RunError: the disk is too small.
    """
    size, seconds, free = 0, 0.0, float("inf")
    for training in trainings:
        preset, overrides = training.variant.preset, training.overrides
        with suppress(Xd3dError):  # the extraction reports it
            expected = jobs.forecast_extraction(workspace, benchmark.dataset, preset, overrides, None).result
            size, seconds = size + expected["bytes_left"], seconds + expected["seconds"]
            free = min(free, float("inf") if expected["free_bytes"] is None else expected["free_bytes"])
    if trainings:
        log.info("%d feature caches: %.1f GB and %.1f h left", len(trainings), size / 1e9, seconds / 3600)
    if size > free:
        raise RunError(
            f"The features of these variants take {size / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free; free some"
            " space, or name a folder on a larger disk with --out"
        )


def _extract_one(workspace: Workspace, benchmark: Benchmark, training: Training) -> str:
    """Extracts the features of one training; returns the error, or an empty string."""
    log.info("Features of %s", training.variant.name)
    preset, overrides = training.variant.preset, training.overrides
    try:
        done = jobs.extract(workspace, benchmark.dataset, preset, overrides, None, retry_failed=True)
    except Xd3dError as error:
        log.warning("%s: no features: %s", training.title, error)
        return str(error)
    return f"its features are incomplete: {done.text}" if done.exit_code else ""


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """A training that ended, with its ``result`` or the ``reason`` of its failure."""

    training: Training
    result: Mapping[str, Any] | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Active:
    training: Training
    process: "subprocess.Popen[str]"
    result: Path
    log: Path


class _WorkerPool:
    """Runs ``size`` child processes at once, each with an equal share of the threads.

    Logs and results are files in ``folder``. A failed child does not affect the others.
    """

    def __init__(self, *, size: int, folder: Path, workspace: Workspace, benchmark: Benchmark) -> None:
        self.folder, self.workspace, self.benchmark, self.size = folder, workspace, benchmark, size
        self.threads = threads_each(size)
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, trainings: Sequence[Training]) -> Iterator[_Finished]:
        """Runs all ``trainings`` and yields each as it ends; one progress bar counts the steps of all."""
        waiting, active = list(trainings), list[_Active]()
        steps = {training.run: _steps(training) for training in trainings}
        done = {training.run: self._steps_done(training) for training in trainings}
        try:
            with progress("ablate", sum(steps.values()), "step", sum(done.values())) as bar:
                while waiting or active:
                    while len(active) < self.size and (ready := _next_ready(waiting, active)):
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
        finally:  # checkpoints of killed children remain, and the next call resumes from them
            for each in active:
                each.process.kill()
            for each in active:
                _wait(each.process)

    def _start(self, training: Training) -> _Active:
        result, log_file = (self.folder / f"{training.run}.{kind}" for kind in ("json", "log"))
        result.unlink(missing_ok=True)
        domains = {shift: self.benchmark.domains[shift] for shift in training.shifts} | {SOURCE: self.benchmark.source}
        init = _run_settings(training.init) if training.init else None
        task = Task(**_run_settings(training), init=init, domains=domains, result=str(result))
        with log_file.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "xd3d.pipeline.ablation.child"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                env={**os.environ, "XD3D_HOME": str(self.workspace.home), "OMP_NUM_THREADS": str(self.threads)},
            )
        if process.stdin is not None:
            with suppress(BrokenPipeError):  # the child died; its exit code is reported
                process.stdin.write(json.dumps(asdict(task)) + "\n")
                process.stdin.flush()
        return _Active(training=training, process=process, result=result, log=log_file)

    def _steps_done(self, training: Training) -> int:
        records = read_log(self.workspace.run(training.run))
        steps = int(records[-1]["step"]) if records else 0
        return steps + (self._steps_done(training.init) if training.init else 0)


def _steps(training: Training) -> int:
    """Steps of a training and of its initial training."""
    return training.resolve().config.train.steps + (_steps(training.init) if training.init else 0)


def _run_settings(training: Training) -> dict[str, Any]:
    return {"preset": training.variant.preset, "overrides": list(training.overrides), "run": training.run}


def _next_ready(waiting: Sequence[Training], active: Sequence[_Active]) -> Training | None:
    """The first of ``waiting`` that shares no run, its own or the initial one, with an active training."""

    def runs(training: Training) -> set[str]:
        return {training.run, *([training.init.run] if training.init else [])}

    busy = {run for each in active for run in runs(each.training)}
    return next((each for each in waiting if not busy & runs(each)), None)


def _conclude(active: _Active) -> _Finished:
    code = _wait(active.process)
    if code == 0:
        return _Finished(training=active.training, result=read_json(active.result))
    lines = active.log.read_text(encoding="utf-8", errors="replace").split("\n")
    output = [line.split("\r")[-1].strip() for line in lines if line.strip()]
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return _Finished(training=active.training, reason=f"{how}: {output[-1] if output else 'no output'} ({active.log})")


def _wait(process: "subprocess.Popen[str]") -> int:
    """Waits for the end of ``process`` and returns its exit code."""
    code = process.wait()
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    return code


def _record(finished: _Finished, rows: RowFile, request: Request) -> dict[str, str]:
    """Appends the rows of a successful training; returns the run and the reason of a failed one."""
    training, result = finished.training, finished.result
    if result is None:
        log.warning("%s failed: %s", training.title, finished.reason)
        return {training.run: finished.reason}
    for shift in training.shifts:
        scores = result["scores"][shift]
        row = Row(
            shift=shift,
            variant=training.variant.name,
            seed=training.seed,
            miou=scores["miou"],
            source_miou=result["scores"][SOURCE]["miou"],
            iou=scores["iou"],
            points=scores["points"],
            digest=training.digest,
            run=training.run,
            command=request.command(training.variant.name, shift, training.seed),
            **{name: result[name] for name in ("steps", "best", "seconds", "code", "features")},
        )
        rows.append(row)
        shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in row.miou.items() if value is not None)
        log.info("%s on %s: %s", training.title, shift, shown)
    return {}


def _outcome(out: Path, results: Results, failed: dict[str, str]) -> Outcome:
    others = f" and {len(results.development)} of the development shift" if results.development else ""
    text = [f"{len(results.rows)} rows{others} are in {out / 'results.json'}, the tables in {out / 'results.md'}."]
    if failed:
        text += [f"{len(failed)} runs failed:", *(f"  {run}: {reason}" for run, reason in failed.items())]
    return Outcome(
        result={
            "out": str(out),
            "rows": len(results.rows),
            "failed": failed,
            "results": str(out / "results.json"),
            "tables": str(out / "results.md"),
        },
        text="\n".join(text),
        exit_code=1 if failed else 0,
    )
