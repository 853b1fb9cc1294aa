"""One function for each command: opens its inputs from the workspace, calls the stage and reports the result."""

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..files import optional_path
from ..processes import is_first_process
from ..stages.datasets.catalogue import FOLDER
from ..stages.datasets.prepare import PrepareSummary, prepare_dataset
from ..stages.datasets.projection_check import seen_shares
from ..stages.datasets.splits import describe_splits
from ..stages.evaluate.metrics import MODALITIES, score_table
from ..stages.evaluate.settings import AbsentRule, Adaptation, FusionRule, norm_window
from .config import DEFAULT_PRESET, ResolvedConfig, load_config
from .console import Outcome
from .domains import DomainOpener, left_out_of
from .extraction import extract_features
from .predict import predict
from .pretrain import pretrain
from .pseudo_labels import batch_candidates
from .runs import TrainedRun, run_facts, run_name, with_recorded_fusion
from .workspace import Workspace

if TYPE_CHECKING:
    from ..stages.synthesize.synthesize import Plan

__all__ = ["evaluate", "extract_features", "predict", "prepare", "pretrain", "report", "synthesize", "train"]


def synthesize(
    out: Path | str,
    *,
    dataset: str = "nuscenes",
    frames: int = 120,
    seed: int = 0,
    cameras: str | None = None,
    plan: "Plan" = "city",
) -> Outcome:
    """Writes the synthetic city to the folder ``out`` as a data root, in the format of ``dataset``.

    It starts processes that import the caller's script, which must call it below ``if __name__ == "__main__":``.

    Args:
        out: a new or empty folder. In nuScenes' format, the folder of an interrupted call with the same arguments is
            resumed.
        dataset: whose file format to write.
        frames: number of frames; in nuScenes' format, of keyframes.
        seed: equal arguments give equal files.
        cameras: channels of nuScenes, separated by commas, or ``all``; by default CAM_FRONT.
        plan: two cities, or the domains of the generalisation benchmark; of nuScenes' format only.

    Examples:
        >>> xd3d.synthesize("city", frames=24).result["frames"]
        24

    Raises:
        ConfigError: an option is out of range, or ``out`` holds something else.
        RunError: another process writes to ``out``.
    """
    out = Path(out)
    if dataset == "nuscenes":
        from ..stages.synthesize.synthesize import synthesize as write_city

        root = write_city(out, frames=frames, seed=seed, cameras=cameras or "CAM_FRONT", plan=plan)
    else:
        from ..stages.synthesize.twins import synthesize_twin

        if cameras or plan != "city":
            raise ConfigError(f"--cameras and --plan belong to --format nuscenes; leave them out for {dataset}")
        root = synthesize_twin(out, dataset=dataset, frames=frames, seed=seed)
    return Outcome(
        result={"root": str(root), "dataset": dataset, "frames": frames, "seed": seed},
        text=f"The synthetic city is in {root}. Next: xd3d prepare --dataset {dataset} --root {shlex.quote(str(root))}",
    )


def prepare(
    dataset: str = "nuscenes",
    root: Path | str | None = None,
    *,
    version: str | None = None,
    cameras: str | None = None,
    config: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    allow_missing: bool = False,
    follow_links: bool = False,
    picture: Path | str | None = None,
    workspace: Workspace | Path | str | None = None,
) -> Outcome:
    """Index ``dataset`` and check its files; the index is stored, and the root remembered, if all are complete.

    The exit code is 1 if files are missing or damaged; ``result["missing"]`` lists them.

    Args:
        dataset: name of a data set, or ``folder`` for data of one's own.
        root: its folder; by default that of the last call, of ``data.roots``, or of ``XD3D_<DATASET>_ROOT``.
        version: version of nuScenes, such as ``v1.0-mini``.
        cameras: cameras to use, separated by commas, ``all`` or ``none``; by default those of the published settings.
        config: name of a preset, or a YAML file.
        overrides: settings that differ from it, as ``"key=value"``.
        allow_missing: index the complete frames if others lack files.
        follow_links: take files of nuScenes that are links out of the root.
        picture: where to write a picture of points over images.
        workspace: its folder; by default ``XD3D_HOME``, or ``xd3d-work`` in the working directory.

    Examples:
        >>> done = xd3d.prepare("nuscenes", "city")
        >>> done.exit_code, done.result["missing"]
        (0, [])

    Raises:
        MissingDataError: no root is known, or it holds no such data set.
        DataError: a table or a calibration is damaged.
    """
    roots = {str(name): path for name, path in load_config(config, overrides, labels=False).config.data.roots.items()}
    workspace = Workspace.of(workspace)
    chosen = workspace.root(dataset, optional_path(root), configured=roots.get(dataset))
    workspace.require_writable()
    done = prepare_dataset(
        dataset,
        chosen,
        workspace.index(dataset),
        version=version,
        cameras=cameras,
        allow_missing=allow_missing,
        follow_links=follow_links,
        picture=optional_path(picture),
    )
    if not done.missing:
        workspace.remember_root(dataset, chosen)
    faults = [f"  {fault.path}: {fault.reason}" for fault in done.missing]
    summary = f"{dataset}: {done.frames} frames, {done.images} images, {len(faults)} missing or damaged files"
    splits = f"Frames of each domain to train on, validate on and test on: {describe_splits(done.splits)}"
    shares = seen_shares(done.views)
    seen = [f"{camera} sees {_range(found)} of the points ({len(found)} scenes)" for camera, found in shares.items()]
    result = {
        **done.to_json(),
        "seen": {camera: mean(found) for camera, found in shares.items()},
        "fits": {found.camera: found.fits if found.clear else None for found in done.alignments},
    }
    lines = [*faults, *seen, *map(str, done.alignments), splits, summary, _advice(done)]
    return Outcome(result=result, text="\n".join(lines), exit_code=1 if faults else 0)


def _advice(done: PrepareSummary) -> str:
    """Returns the next command, or what to do about missing or damaged files."""
    if not done.missing:
        next_command = f"Next: xd3d extract-features --dataset {done.dataset}"
        if not done.images:
            next_command = "There are no images, so no features. Next: xd3d train --set fusion.variant=3d-only"
        return f"{left_out_of(done.dataset, done.left_out)}\n{next_command}".lstrip()
    again = "copy them again from their source" if done.dataset == FOLDER else "download them again"
    advice = f"Mend or replace these files ({again}), then run the same command."
    if done.incomplete < done.frames:
        advice += (
            f" Or index the other {done.frames - done.incomplete} frames: the option --allow-missing leaves the"
            f" {done.incomplete} incomplete ones out."
        )
    return advice


def _range(shares: Sequence[float]) -> str:
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return low if low == high else f"{low} to {high}"


def train(
    config: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    *,
    cached: bool = False,
    run: Path | str | None = None,
    torchrun: bool = False,
    workspace: Workspace | Path | str | None = None,
) -> Outcome:
    """Runs stage two: trains the sparse 3D network and the fusion module; a run that was stopped resumes.

    Args:
        config: name of a preset, or a YAML file.
        overrides: settings that differ from it, as ``"key=value"``.
        cached: read features from the cache; otherwise they are computed in the loop.
        run: a folder or a name; by default it follows from the settings.
        torchrun: the processes that ``torchrun`` started share each batch.
        workspace: its folder; by default ``XD3D_HOME``, or ``xd3d-work`` in the working directory.

    Examples:
        >>> few = ["extract.image_size=[48, 80]", "train.steps=2", "train.milestones=[2]"]
        >>> done = xd3d.train("default", few, cached=True, run="first")
        >>> done.result["steps"]
        2

    Raises:
        CacheError: there are no cached features with these settings.
        RunError: the run has other settings, or other processes cannot be reached.
    """
    from ..stages.train.parallel import distributed

    resolved = load_config(config, overrides)
    with distributed(resolved.config.train.device) if torchrun else nullcontext():
        return _train(Workspace.of(workspace), resolved, cached=cached, run=optional_path(run))


def _train(workspace: Workspace, resolved: ResolvedConfig, *, cached: bool, run: Path | None) -> Outcome:
    from ..stages.predict.inference import validate
    from ..stages.train.loop import train as train_network
    from .report.frames import validation_pictures

    named = workspace.find_run(run) if run else None
    if named:
        resolved = with_recorded_fusion(resolved, named)
    settings = resolved.config
    domains = DomainOpener(workspace, settings, cached=cached)
    source, target, validation = domains.source(), domains.target(), domains.validation()
    folder = named or workspace.run(run_name(resolved, domains, cached=cached))
    done = train_network(
        run=folder,
        source=source,
        target=target,
        init=domains.init(),
        score=partial(validate, fusion=settings.evaluate.fusion, workers=settings.train.workers),
        label=partial(batch_candidates, settings),
        draw=partial(validation_pictures, extract=settings.extract, fusion=settings.evaluate.fusion),
        metric=domains.best_metric(),
        validation=validation,
        model=settings.model,
        fusion=settings.fusion,
        augment=settings.augment,
        settings=settings.train,
        facts=run_facts(resolved, cached=cached),
        on_start=lambda: workspace.remember_run(folder),  # a run that is interrupted counts as the last run too
    )
    if is_first_process():
        workspace.remember_run(folder)
    best = None if done.best is None else {"step": done.best.step, done.best.metric: done.best.miou}
    score = f", best validation mIoU {100 * done.best.miou:.1f} % at step {done.best.step}" if done.best else ""
    return Outcome(
        result={"run": str(done.run), "steps": done.steps, "best": best},
        text=f"{done.steps} steps done{score}. The run is in {done.run}. Next: xd3d evaluate",
    )


def evaluate(
    run: Path | str | None = None,
    *,
    split: str | None = None,
    domain: str = "target",
    absent: AbsentRule | None = None,
    fusion: FusionRule | None = None,
    lidar_only: bool = False,
    adapt: Adaptation = "none",
    window: int | None = None,
    export: Path | str | None = None,
    machine: Sequence[str] = (),
    workspace: Workspace | Path | str | None = None,
) -> Outcome:
    """Scores a run, by default the last, and stores the score with its protocol in the run folder.

    Args:
        run: a folder or a name.
        split: train, val or test; by default the one that the config scores on.
        domain: source, target, or another domain of the target's data set.
        absent: how a class that occurs nowhere is counted; by default that of the run's settings.
        fusion: rule for the fused prediction; by default that of the run's settings.
        lidar_only: predict without images.
        adapt: ``norm`` normalises with the statistics of the predicted frames.
        window: number of frames of these statistics; by default the frame alone.
        export: folder for predictions in the official format; a split without labels is only exported.
        machine: settings of this machine, such as ``["train.device=cpu"]``.
        workspace: its folder; by default ``XD3D_HOME``, or ``xd3d-work`` in the working directory.

    Examples:
        >>> scores = xd3d.evaluate("first").result
        >>> 0 <= scores["miou"]["fused"] <= 1
        True

    Raises:
        MissingDataError: nothing has been trained.
        ConfigError: there is no such domain or split.
        DataError: the split has no labels, and ``export`` is not given.
    """
    trained = TrainedRun.open(Workspace.of(workspace), optional_path(run), machine)
    export = optional_path(export)
    card = trained.score(
        split=split,
        side=domain,
        absent=absent,
        fusion=fusion,
        lidar_only=lidar_only,
        norm_window=norm_window(adapt, window),
        export=export,
    )
    written = {} if export is None else {"export": str(export)}
    if export is not None and not card.points:
        counts = {"points": 0, "dropped": card.dropped, "frames": card.frames}
        unscored = {"miou": dict.fromkeys(MODALITIES), "iou": {}, **counts}
        return Outcome(
            result={**unscored, "protocol": asdict(card.protocol) if card.protocol else None, **written},
            text=f"{card.frames} frames without labels, so without scores; their predictions are in {export}",
        )
    named = [] if run is None else ["--run", str(run)]
    next_command = shlex.join(["xd3d", "report", *named])
    if not trained.scores_path("target", "test").is_file():
        needed = shlex.join(["xd3d", "evaluate", *named])
        next_command = f"{needed} (the report shows the scores on the target's test split)"
    return Outcome(
        result={**card.to_json(), **written}, text=f"{score_table(card)}\n{trained.progress}\nNext: {next_command}"
    )


def report(
    run: Path | str | None = None,
    out: Path | str | None = None,
    *,
    other: Path | str | None = None,
    machine: Sequence[str] = (),
    workspace: Workspace | Path | str | None = None,
) -> Outcome:
    """Writes the single-file report of a run, by default the last.

    Args:
        run: a folder or a name.
        out: the HTML file; by default ``report.html`` in the run's folder.
        other: a second run whose predictions are shown beside the first's.
        machine: settings of this machine, such as ``["train.device=cpu"]``.
        workspace: its folder; by default ``XD3D_HOME``, or ``xd3d-work`` in the working directory.

    Examples:
        >>> done = xd3d.report("first", "report.html")
        >>> done.result["report"]
        'report.html'

    Raises:
        MissingDataError: nothing has been trained.
    """
    from .report.build import build_report

    workspace = Workspace.of(workspace)
    trained = TrainedRun.open(workspace, optional_path(run), machine)
    beside = None if other is None else TrainedRun.open(workspace, Path(other), machine)
    path = build_report(trained, trained.folder / "report.html" if out is None else Path(out), other=beside)
    return Outcome(result={"report": str(path)}, text=f"The report is in {path}")
