"""The demo: all stages on a synthetic city, from a data root in nuScenes' format to a report."""

import logging
from pathlib import Path

from ..errors import RunError
from . import jobs
from .console import Outcome
from .runs import TrainedRun
from .workspace import Workspace

__all__ = ["run_demo"]

log = logging.getLogger(__name__)

PRESET = "demo"
LEAD = (
    "A synthetic city was rendered in two domains; a tiny diffusion model looked at every camera image once; a sparse"
    " 3D network learned from Boston streets with those cached features, and was then tested on Singapore streets,"
    " which differ in layout, materials, vehicles, traffic side and sensor."
)


def run_demo(out: Path, *, frames: int, seed: int) -> Outcome:
    """Runs all stages in the folder ``out``; finished work of an earlier call is kept.

    Raises:
        RunError: the preset scores no fused prediction of image and cloud, because it uses no images.
    """
    from .report.build import build_report

    out.mkdir(parents=True, exist_ok=True)
    workspace, city = Workspace(home=(out / "work").absolute()), out / "city"
    log.info("1/5 The synthetic city: two domains, written as a nuScenes data root")
    jobs.synthesize_city(city, frames=frames, seed=seed, cameras="CAM_FRONT")
    log.info("2/5 Prepare: index the data root and check its files")
    jobs.prepare(workspace, "nuscenes", city, version=None, cameras="CAM_FRONT")
    log.info("3/5 Stage one: diffusion features and agent queries of every image, into the cache")
    jobs.extract(workspace, "nuscenes", PRESET, (), None, retry_failed=False)
    log.info("4/5 Stage two: train on Boston, choose the checkpoint on held-out Singapore scenes")
    jobs.train(workspace, PRESET, [f"train.seed={seed}"], cached=True, run=None)
    log.info("5/5 Evaluate on Singapore's test scenes, and write the report")
    run = TrainedRun.open(workspace, None)
    card = run.score()
    report = build_report(run, (out / "report.html").absolute(), lead=LEAD)
    miou, majority = card.miou["fused"], run.majority(card)
    if miou is None or card.miou["2d"] is None:
        raise RunError(f"The preset '{PRESET}' gave no 2D score; it must use images (fusion.variant)")
    return Outcome(
        result={"report": str(report), "miou": miou, "majority_miou": majority},
        text=f"Singapore, fused mIoU {100 * miou:.1f} % (always the most frequent class: {100 * majority:.1f} %)."
        f" Open {report}",
    )
