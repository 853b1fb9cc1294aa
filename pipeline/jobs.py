"""One function for each command: opens its inputs from the workspace, calls the stage and reports the result."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..processes import is_first_process
from ..stages.datasets.catalogue import FOLDER
from ..stages.evaluate.settings import AbsentRule, FusionRule
from .config import DEFAULT_PRESET, load_config
from .console import Outcome
from .domains import DomainOpener, left_out_of
from .runs import TrainedRun, as_begun, run_facts, run_name
from .sharing import ALONE, Sharing
from .workspace import Workspace

if TYPE_CHECKING:
    from ..stages.extract.job import ExtractSummary
    from ..stages.synthesize.synthesize import Plan

__all__ = [
    "evaluate",
    "extract",
    "forecast_extraction",
    "prepare",
    "synthesize_city",
    "train",
    "train_together",
    "write_report",
]


def synthesize_city(
    out: Path, *, dataset: str = "nuscenes", frames: int, seed: int, cameras: str | None, plan: "Plan" = "city"
) -> Outcome:
    """Write the synthetic city to ``out`` as a data root of ``dataset``."""
    if dataset == "nuscenes":
        from ..stages.synthesize.synthesize import synthesize

        root = synthesize(out, frames=frames, seed=seed, cameras=cameras or "CAM_FRONT", plan=plan)
    else:
        from ..stages.synthesize.twins import synthesize_twin

        if cameras or plan != "city":
            raise ConfigError(f"--cameras and --plan belong to --format nuscenes; leave them out for {dataset}")
        root = synthesize_twin(out, dataset=dataset, frames=frames, seed=seed)
    return Outcome(
        result={"root": str(root), "dataset": dataset, "frames": frames, "seed": seed},
        text=f"The synthetic city is in {root}. Next: xd3d prepare --dataset {dataset} --root {root}",
    )


def prepare(
    workspace: Workspace,
    dataset: str,
    root: Path | None,
    *,
    version: str | None,
    cameras: str | None,
    config: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    allow_missing: bool = False,
    follow_links: bool = False,
    picture: Path | None = None,
) -> Outcome:
    """Index ``dataset`` and check its files; the index is stored, and the root remembered, if all are complete.

    With ``allow_missing`` the index goes without the frames that are not.
    """
    from ..stages.datasets.prepare import prepare_dataset
    from ..stages.datasets.splits import describe_splits
    from ..stages.datasets.visibility import seen_shares

    roots = {str(name): path for name, path in load_config(config, overrides).config.data.roots.items()}
    chosen = workspace.root(dataset, root, configured=roots.get(dataset))
    workspace.require_writable()
    done = prepare_dataset(
        dataset,
        chosen,
        workspace.index(dataset),
        version=version,
        cameras=cameras,
        allow_missing=allow_missing,
        follow_links=follow_links,
        picture=picture,
    )
    if not done.missing:
        workspace.remember_root(dataset, chosen)
    faults = [f"  {fault.path}: {fault.reason}" for fault in done.missing]
    summary = f"{dataset}: {done.frames} frames, {done.images} images, {len(faults)} missing or damaged files"
    if faults:
        again = "copy them again from their source" if dataset == FOLDER else "download them again"
        advice = f"Replace these files ({again}), then run the same command."
        if done.incomplete < done.frames:
            advice += (
                f" Or index the other {done.frames - done.incomplete} frames: the option --allow-missing leaves the"
                f" {done.incomplete} incomplete ones out."
            )
    else:
        advice = left_out_of(dataset, done.left_out)
    splits = f"Frames of each domain to train on, validate on and test on: {describe_splits(done.splits)}"
    shares = seen_shares(done.views)
    seen = [f"{camera} sees {_range(found)} of the points ({len(found)} scenes)" for camera, found in shares.items()]
    return Outcome(
        result={
            **done.to_json(),
            "seen": {camera: mean(found) for camera, found in shares.items()},
            "fits": {found.camera: found.fits if found.clear else None for found in done.alignments},
        },
        text="\n".join([*faults, *seen, *map(str, done.alignments), splits, summary, advice]),
        exit_code=1 if faults else 0,
    )


def _range(shares: Sequence[float]) -> str:
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return low if low == high else f"{low} to {high}"


def forecast_extraction(
    workspace: Workspace, dataset: str, config: str, overrides: Sequence[str], root: Path | None
) -> Outcome:
    """Forecast the cost of stage one from one image; the exit code is 1 if the disk is too small."""
    from ..stages.extract.forecast import forecast

    opener = DomainOpener(workspace, load_config(config, overrides).config, cached=True, root=root)
    expected = forecast(opener.index(dataset), opener.extract_settings(dataset), opener.cache_path(dataset))
    hours = expected.seconds / 3600
    free = "" if expected.free_bytes is None else f" ({expected.free_bytes / 1e9:.1f} GB are free)"
    advice = "" if expected.fits else "\nThe disk is too small: free some space, or set XD3D_CACHES to a larger disk."
    return Outcome(
        result={**asdict(expected), "fits": expected.fits},
        text=f"{expected.left} of {expected.images} images left, {expected.bytes_per_image / 1e6:.2f} MB per image:"
        f" {expected.bytes_left / 1e9:.2f} GB{free},"
        f" {expected.seconds_per_image:.2f} s per image: {hours:.2f} h{advice}",
        exit_code=0 if expected.fits else 1,
    )


def extract(
    workspace: Workspace,
    dataset: str,
    config: str,
    overrides: Sequence[str],
    root: Path | None,
    *,
    retry_failed: bool,
    sharing: Sharing = ALONE,
) -> Outcome:
    """Run stage one on every image of ``dataset``, or on a part of them; the exit code is 1 if one has no features."""
    opener = DomainOpener(workspace, load_config(config, overrides).config, cached=True, root=root)
    path = opener.cache_path(dataset)
    index, settings = opener.index(dataset), opener.extract_settings(dataset)
    fill: Callable[..., ExtractSummary]
    if sharing.workers or sharing.scheduler:
        from ..stages.extract.cluster import extract_with_workers

        fill = partial(extract_with_workers, workers=sharing.workers, scheduler=sharing.scheduler)
    else:
        from ..stages.extract.job import extract_features

        fill = partial(extract_features, part=sharing.part)
    if settings.models:
        from ..stages.extract.parts import extract_networks

        done = extract_networks(index, settings, path, fill=fill, retry_failed=retry_failed)
    else:
        done = fill(index, settings, path, retry_failed=retry_failed)
    advice = _failures(path, done.failed)
    return Outcome(
        result={
            "cache": str(path),
            "fingerprint": done.fingerprint,
            "images": done.images,
            "done": done.done,
            "failed": done.failed,
            "seconds": round(done.seconds, 3),
            "images_per_second": round(done.images_per_second, 4),
            **{f"share_{activity}": round(share, 4) for activity, share in done.shares.items()},
        },
        text=f"{done.done} of {done.images} images are in {path} ({done.seconds:.0f} s).{advice}",
        exit_code=1 if done.done < done.images else 0,
    )


def _failures(cache: Path | str, failed: int) -> str:
    """Says how many images failed, why the first one did, and what helps."""
    if not failed:
        return ""
    from ..cache.networks import part_paths
    from ..cache.reader import FeatureReader

    reason = next((reason for part in part_paths(cache) for reason in FeatureReader(part).failed.values()), "")
    remedy = "try extract.dtype=float32; " if "not finite" in reason else ""
    return f"\n{failed} images failed ({reason}); {remedy}--retry-failed tries them again"


def train_together(
    workspace: Workspace, config: str, overrides: Sequence[str], *, cached: bool, run: Path | None
) -> Outcome:
    """Run ``train`` in every process that ``torchrun`` started; the processes share each batch.

    Raises:
        RunError: the other processes cannot be reached.
    """
    from ..stages.train.parallel import distributed

    with distributed(load_config(config, overrides).config.train.device):
        return train(workspace, config, overrides, cached=cached, run=run)


def train(workspace: Workspace, config: str, overrides: Sequence[str], *, cached: bool, run: Path | None) -> Outcome:
    """Run stage two, from the cache or with the diffusion model in the loop; a run that was stopped resumes."""
    from ..stages.predict.inference import validate
    from ..stages.train.loop import train as train_network

    resolved, named = load_config(config, overrides), workspace.find_run(run) if run else None
    if named:
        resolved = as_begun(resolved, named)
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
    workspace: Workspace,
    run: Path | None,
    *,
    split: str | None,
    side: str,
    absent: AbsentRule | None,
    fusion: FusionRule | None = None,
    lidar_only: bool = False,
    export: Path | None = None,
    machine: Sequence[str] = (),
) -> Outcome:
    """Score a run on a split of its target or source, and store the score with its protocol in the run folder.

    Of a split without labels the predictions are exported, and there are no scores. ``machine``: overrides of machine
    settings, see ``TrainedRun.open``.
    """
    from ..stages.evaluate.metrics import MODALITIES, score_table

    trained = TrainedRun.open(workspace, run, machine)
    card = trained.score(split=split, side=side, absent=absent, fusion=fusion, lidar_only=lidar_only, export=export)
    written = {} if export is None else {"export": str(export)}
    if export is not None and not card.points:
        counts = {"points": 0, "dropped": card.dropped, "frames": card.frames}
        unscored = {"miou": dict.fromkeys(MODALITIES), "iou": {}, **counts}
        return Outcome(
            result={**unscored, "protocol": asdict(card.protocol) if card.protocol else None, **written},
            text=f"{card.frames} frames without labels, so without scores; their predictions are in {export}",
        )
    return Outcome(result={**card.to_json(), **written}, text=f"{score_table(card)}\n{trained.progress}")


def write_report(
    workspace: Workspace, run: Path | None, out: Path | None, machine: Sequence[str] = (), *, other: Path | None = None
) -> Outcome:
    """Write the single-file report of a run, with the clouds of ``other`` beside it; ``machine``: see ``evaluate``."""
    from .report.build import build_report

    trained = TrainedRun.open(workspace, run, machine)
    beside = None if other is None else TrainedRun.open(workspace, other, machine)
    path = build_report(trained, out or trained.folder / "report.html", other=beside)
    return Outcome(result={"report": str(path)}, text=f"The report is in {path}")
