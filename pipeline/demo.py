"""The demo: all stages on a synthetic city, and the network of LiDAR alone beside the full method."""

import logging
from pathlib import Path

from ..errors import RunError
from . import jobs
from .console import Outcome
from .runs import TrainedRun
from .workspace import Workspace

__all__ = ["run_demo"]

log = logging.getLogger(__name__)

FRAMES, FAST_FRAMES = 96, 24
LEAD = (
    "A synthetic city was rendered in two domains; a tiny diffusion model looked at every camera image once; a sparse"
    " 3D network learned from Boston streets, alone and with those cached features, and was then tested on Singapore"
    " streets, which differ in layout, materials, vehicles, traffic side and sensor."
)


def run_demo(out: Path, *, frames: int | None, seed: int, fast: bool = False) -> Outcome:
    """Runs all stages in the folder ``out``; finished work of an earlier call is kept.

    Two networks are trained: one on LiDAR alone, one with the cached features. ``fast`` takes fewer frames and a few
    steps of training: it shows that everything runs; its scores mean nothing.

    Raises:
        RunError: the preset scores no fused prediction of image and cloud, because it uses no images.
    """
    from .report.build import build_report

    preset = "demo-fast" if fast else "demo"
    out.mkdir(parents=True, exist_ok=True)
    workspace, city = Workspace(home=(out / "work").absolute()), out / "city"
    log.info("1/6 Synthesize: two domains of a city, written as a nuScenes data root")
    jobs.synthesize(city, frames=frames or (FAST_FRAMES if fast else FRAMES), seed=seed, cameras="CAM_FRONT")
    log.info("2/6 Prepare: index the data root and check its files")
    jobs.prepare("nuscenes", city, version=None, cameras="CAM_FRONT", workspace=workspace)
    log.info("3/6 Stage one: diffusion features and agent queries of every image, into the cache")
    jobs.extract_features("nuscenes", preset, (), None, retry_failed=False, workspace=workspace)
    log.info("4/6 Stage two, LiDAR alone: train on Boston, choose the checkpoint on held-out Singapore scenes")
    lidar = _train(workspace, preset, seed, "fusion.variant=3d-only")
    log.info("5/6 Stage two, with the cached features")
    run = _train(workspace, preset, seed)
    log.info("6/6 Evaluate both on Singapore's test scenes, and write the report")
    alone, metrics = lidar.score().miou["3d"], run.score()
    fused, majority = metrics.miou["fused"], run.majority(metrics)
    if fused is None or alone is None or metrics.miou["2d"] is None:
        raise RunError(f"The preset '{preset}' gave no 2D score; it must use images (fusion.variant)")
    scores = f"LiDAR alone {_percent(alone)}, with cached diffusion features {_percent(fused)}"
    note = " A smoke test: after so few steps of training the scores mean nothing." if fast else ""
    lead = f"{scores} (mIoU on Singapore).{note} {LEAD}"
    report = build_report(run, (out / "report.html").absolute(), lead=lead, other=lidar)
    return Outcome(
        result={"report": str(report), "miou": fused, "lidar_alone_miou": alone, "majority_miou": majority},
        text=f"Report: {report}\n"
        f"Singapore, mIoU: {scores} (always the most frequent class: {_percent(majority)}).{note}",
    )


def _train(workspace: Workspace, preset: str, seed: int, *overrides: str) -> TrainedRun:
    jobs.train(preset, [f"train.seed={seed}", *overrides], cached=True, run=None, workspace=workspace)
    return TrainedRun.open(workspace, None)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
