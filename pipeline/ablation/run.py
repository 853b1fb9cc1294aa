"""The ablation from data to tables: extracts features, trains missing runs in child processes, publishes the rows."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path

from ...errors import Xd3dError
from ...files import read_json
from ...locks import exclusive_lock
from ...processes import threads_each
from ...progress import progress
from ...stages.train.run_log import read_log
from .. import jobs
from ..console import Outcome
from ..domains import DomainOpener
from ..workspace import Workspace
from .child import SOURCE, is_trained, run_child
from .plan import Benchmark, Request, Training, plan_trainings
from .results import Results, publish
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
        RunError: another process works in ``out``.
    """
    request.check(benchmark)
    out = out.absolute()
    with exclusive_lock(out, work="runs 'xd3d ablate'", option="--out"):
        workspace = Workspace(home=out / "work")
        data = benchmark.prepare(out, workspace)
        rows = RowFile(out / "rows.jsonl")
        published = partial(publish, benchmark, request, data, rows, out=out, docs=docs)
        results = published({})
        trainings = plan_trainings(benchmark, request, data, {row.key for row in rows.rows})
        failed = _extract(workspace, benchmark, trainings)
        ready = [training for training in trainings if training.run not in failed]
        log.info("%d runs to train, %d rows exist", len(ready), len(results.rows))
        for child in _run_children(ready, processes, out / "logs", workspace, benchmark):
            failed |= _record(child, rows, request)
            results = published(failed)
    return _outcome(out, results, failed)


def _extract(workspace: Workspace, benchmark: Benchmark, trainings: Sequence[Training]) -> dict[str, str]:
    """Extracts the features of ``trainings``, once per cache; returns the error of each run whose cache failed."""
    failed: dict[str, str] = {}
    readers: dict[tuple[str, object], list[tuple[Training, str]]] = {}
    for training in trainings:
        reader = training if training.resolved.config.fusion.image else training.init
        if reader is not None:
            config = reader.resolved.config
            try:
                path = str(DomainOpener(workspace, config, cached=True).cache_path(benchmark.dataset))
                part = (config.extract.models, config.extract.taps)  # a cache of several networks grows
            except Xd3dError as error:
                failed[training.run] = str(error)
            else:
                readers.setdefault((path, part), []).append((reader, training.run))
    for found in readers.values():
        if reason := _extract_one(workspace, benchmark, found[0][0]):
            failed |= {run: reason for _, run in found}
    return failed


def _extract_one(workspace: Workspace, benchmark: Benchmark, training: Training) -> str:
    """Extracts the features of one training; returns the error, or an empty string."""
    log.info("Features of %s", training.variant.name)
    preset, overrides = training.variant.preset, training.overrides
    try:
        done = jobs.extract_features(benchmark.dataset, preset, overrides, None, retry_failed=True, workspace=workspace)
    except Xd3dError as error:
        log.warning("%s: no features: %s", training.title, error)
        return str(error)
    return f"its features are incomplete: {done.text}" if done.exit_code else ""


@dataclass(frozen=True, kw_only=True)
class _Child:
    """A process that trains, with the files of its result and of its output."""

    training: Training
    process: SpawnProcess
    result: Path
    log: Path

    def failure(self) -> str:
        """Returns why the ended process failed; "" if it did not."""
        if not (code := self.process.exitcode):
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        output = [line.split("\r")[-1].strip() for line in lines if line.strip()]
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{how}: {output[-1] if output else 'no output'} ({self.log})"


def _run_children(
    trainings: Sequence[Training], size: int, folder: Path, workspace: Workspace, benchmark: Benchmark
) -> Iterator[_Child]:
    """Runs ``trainings`` in ``size`` processes at once, and yields each when it has ended.

    Logs and results are files in ``folder``. A failed process does not affect the others. One progress bar counts the
    steps of all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting, active, threads = list(trainings), list[_Child](), threads_each(size)
    steps = {name: steps for training in trainings for name, steps in _steps(training).items()}
    done = {name: _steps_done(workspace, name) for name in steps}
    try:
        with progress("ablate", sum(steps.values()), "step", sum(done.values())) as bar:
            while waiting or active:
                while len(active) < size and (ready := _next_ready(workspace, waiting, active)):
                    waiting.remove(ready)
                    active.append(_start(ready, folder, workspace, benchmark, threads))
                time.sleep(POLL_SECONDS)
                for child in [child for child in active if child.process.exitcode is not None]:
                    active.remove(child)
                    done |= _steps(child.training)
                    yield child
                done |= {name: _steps_done(workspace, name) for child in active for name in _steps(child.training)}
                bar.update(max(sum(done.values()) - bar.n, 0))
    finally:  # checkpoints of killed children remain, and the next call resumes from them
        for child in active:
            child.process.kill()
        for child in active:
            child.process.join()


def _start(training: Training, folder: Path, workspace: Workspace, benchmark: Benchmark, threads: int) -> _Child:
    result, log_file = (folder / f"{training.run}.{kind}" for kind in ("json", "log"))
    result.unlink(missing_ok=True)
    domains = {shift: benchmark.domains[shift] for shift in training.shifts} | {SOURCE: benchmark.source}
    process = get_context("spawn").Process(
        target=run_child,
        args=(workspace, training, domains),
        kwargs={"result": result, "log": log_file},
        daemon=True,
    )
    inherited = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # numpy reads it when the new process imports it
    try:
        process.start()
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        os.environ.update(inherited)
    return _Child(training=training, process=process, result=result, log=log_file)


def _steps_done(workspace: Workspace, run: str) -> int:
    records = read_log(workspace.run(run))
    return int(records[-1]["step"]) if records else 0


def _steps(training: Training) -> dict[str, int]:
    """Steps of the run of a training and of its initial run, by name."""
    return {each.run: each.resolved.config.train.steps for each in (training, training.init) if each}


def _next_ready(workspace: Workspace, waiting: Sequence[Training], active: Sequence[_Child]) -> Training | None:
    """Returns the first of ``waiting`` that shares no run with an active one; a finished initial run may be shared."""

    def runs(training: Training) -> set[str]:
        init = training.init
        return {training.run, *([init.run] if init and not is_trained(workspace, init) else [])}

    busy = {run for child in active for run in runs(child.training)}
    return next((training for training in waiting if not busy & runs(training)), None)


def _record(child: _Child, rows: RowFile, request: Request) -> dict[str, str]:
    """Appends the rows of a successful training; returns the run and the reason of a failed one."""
    training = child.training
    if reason := child.failure():
        log.warning("%s failed: %s", training.title, reason)
        return {training.run: reason}
    result = read_json(child.result)
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
    others = f" and {len(results.development)} of the development shifts" if results.development else ""
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
