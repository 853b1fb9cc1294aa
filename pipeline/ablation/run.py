"""The ablation from data to tables: what is there is kept, what is missing is made, what fails is named."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import RunError, Xd3dError
from ...locks import exclusive_lock
from .. import jobs
from ..console import Outcome
from ..domains import DomainOpener
from ..workspace import Workspace
from .benchmark import Benchmark
from .child import SOURCE
from .crew import Crew, Finished
from .learned import show_learned
from .plan import Request, Training, plan_trainings
from .published import Publisher
from .results import Results
from .rows import Row, RowFile

__all__ = ["run_ablation"]

log = logging.getLogger(__name__)


def run_ablation(
    out: Path, benchmark: Benchmark, request: Request, *, processes: int, docs: Path | None = None
) -> Outcome:
    """Make every row of ``request`` that is not in ``out`` yet, and write the results of all rows after each run.

    It may be stopped at any time: the same call goes on, finished rows are kept and begun runs go on from their
    checkpoints. ``docs`` is a folder whose ``results.md`` and ``results.json`` are brought up to date too; rows that
    stand there already count as made, so another machine can go on from them.

    Raises:
        ConfigError: a setting is unknown or out of range, or not for the caller to choose.
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
        able = [training for training in trainings if training.run not in failed]
        log.info("%d runs to do, %d rows are there", len(able), len(results.rows))
        crew = Crew(size=processes, folder=out / "logs", workspace=workspace, benchmark=benchmark)
        for finished in crew.run(able):
            failed |= _keep(finished, rows, request)
            results = publisher.publish(failed)
        show_learned(workspace, benchmark, list(results.rows), out)
        results = publisher.publish(failed)
    return _outcome(out, results, failed)


def _extract(workspace: Workspace, benchmark: Benchmark, trainings: Sequence[Training]) -> dict[str, str]:
    """Bring every cache that ``trainings`` read up to date; the reason for each run whose cache cannot be made."""
    failed: dict[str, str] = {}
    readers: dict[str, list[Training]] = {}
    for training in trainings:
        config = training.resolve().config
        if config.fusion.image:
            try:
                path = str(DomainOpener(workspace, config, cached=True).cache_path(benchmark.dataset))
            except Xd3dError as error:
                failed[training.run] = str(error)
            else:
                readers.setdefault(path, []).append(training)
    _require_room(workspace, benchmark, [first for first, *_ in readers.values()])
    for first, *others in readers.values():
        if reason := _extract_one(workspace, benchmark, first):
            failed |= {training.run: reason for training in (first, *others)}
    return failed


def _require_room(workspace: Workspace, benchmark: Benchmark, trainings: Sequence[Training]) -> None:
    """Say what the features of ``trainings``, each of another cache, will take, and that the disk has room for them.

    Raises:
        RunError: it has not.
    """
    size, seconds, free = 0, 0.0, float("inf")
    for training in trainings:
        preset, overrides = training.variant.preset, training.overrides
        with suppress(Xd3dError):  # the extraction will say so
            expected = jobs.forecast_extraction(workspace, benchmark.dataset, preset, overrides, None).result
            size, seconds = size + expected["bytes_left"], seconds + expected["seconds"]
            free = min(free, float("inf") if expected["free_bytes"] is None else expected["free_bytes"])
    if trainings:
        log.info("%d caches of features: %.1f GB and %.1f h to go", len(trainings), size / 1e9, seconds / 3600)
    if size > free:
        raise RunError(
            f"The features of these variants take {size / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free; free some"
            " space, or name a folder on a larger disk with --out"
        )


def _extract_one(workspace: Workspace, benchmark: Benchmark, training: Training) -> str:
    """Extract the features of one training; what went wrong, or nothing."""
    log.info("Features of %s", training.variant.name)
    preset, overrides = training.variant.preset, training.overrides
    try:
        done = jobs.extract(workspace, benchmark.dataset, preset, overrides, None, retry_failed=True)
    except Xd3dError as error:
        log.warning("%s: no features: %s", training.title, error)
        return str(error)
    return f"its features are incomplete: {done.text}" if done.exit_code else ""


def _keep(finished: Finished, rows: RowFile, request: Request) -> dict[str, str]:
    """Append the rows of a training that ended well; else its name and reason."""
    training, result = finished.training, finished.result
    if result is None:
        log.warning("%s failed: %s", training.title, finished.reason)
        return {training.run: finished.reason}
    for shift in training.shifts:
        row = _row(training, shift, result, request)
        rows.append(row)
        log.info("%s on %s: %s", training.title, shift, _said(row))
    return {}


def _row(training: Training, shift: str, result: Any, request: Request) -> Row:
    scores = result["scores"][shift]
    return Row(
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


def _said(row: Row) -> str:
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in row.miou.items() if value is not None)


def _outcome(out: Path, results: Results, failed: dict[str, str]) -> Outcome:
    missing = [f"  {run}: {reason}" for run, reason in failed.items()]
    others = f" and {len(results.development)} of the development shift" if results.development else ""
    text = [f"{len(results.rows)} rows{others} are in {out / 'results.json'}, the tables in {out / 'results.md'}."]
    return Outcome(
        result={
            "out": str(out),
            "rows": len(results.rows),
            "failed": failed,
            "results": str(out / "results.json"),
            "tables": str(out / "results.md"),
        },
        text="\n".join([*text, *([f"{len(failed)} runs failed:", *missing] if failed else [])]),
        exit_code=1 if failed else 0,
    )
