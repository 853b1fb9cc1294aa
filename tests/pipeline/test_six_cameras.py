"""nuScenes with six cameras, end to end: overlapping images, agents of six, a view all around."""

from dataclasses import replace

import numpy as np
import pytest
from xd3d.pipeline import jobs
from xd3d.pipeline.report.build import build_report
from xd3d.pipeline.runs import TrainedRun
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.frames import load_frame
from xd3d.stages.datasets.nuscenes import CAMERAS
from xd3d.stages.synthesize.synthesize import synthesize

SETTINGS = [
    *(
        "extract.image_size=[48,80]",
        "extract.agents.count=8",
        "extract.device=cpu",
        "model.preset=slim",
        "model.voxel_size=0.4",
    ),
    *("fusion.tokens=6", "fusion.query_channels=16", "fusion.rank=3", "fusion.image_channels=8"),
    *(
        "fusion.queries=agents",
        "fusion.head=distil",
        "fusion.depth=sparse",
    ),  # beside the located agents: the queries tell cameras apart
    *("train.steps=2", "train.batch_size=2", "train.workers=0", "train.device=cpu", "train.validate_every=2"),
]


@pytest.fixture(scope="module", params=["tiny", pytest.param("city", marks=pytest.mark.slow)])
def trained(request, tiny_nuscenes_root, tmp_path_factory):
    """A workspace with a run on six cameras, and what each command said."""
    folder, root = tmp_path_factory.mktemp("six cameras"), tiny_nuscenes_root
    if request.param == "city":
        root = synthesize(folder / "city", frames=24, seed=3, cameras="all", image_size=(96, 54), workers=1)
    workspace = Workspace(home=folder / "home")
    done = {"prepare": jobs.prepare("nuscenes", root, version=None, cameras="all", workspace=workspace)}
    done["extract"] = jobs.extract_features(
        "nuscenes", "default", SETTINGS, None, retry_failed=False, workspace=workspace
    )
    jobs.train("default", SETTINGS, cached=True, run=None, workspace=workspace)
    return TrainedRun.open(workspace, None), {name: outcome.result for name, outcome in done.items()}


def test_points_of_none_one_and_two_cameras_add_up(trained):
    run, done = trained
    assert done["prepare"]["images"] == 6 * done["prepare"]["frames"]
    index = run.domains.index("nuscenes")
    assert index.cameras == CAMERAS
    whole = load_frame(index, 0, None, every_point=True)
    kept = load_frame(index, 0, None)
    by = np.bincount(whole.projection_point, minlength=len(whole.points))
    assert {0, 1, 2} <= set(by.tolist()) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(kept.source_rows, np.flatnonzero(by))
    assert len(kept.projection_point) == by.sum() > len(kept.points)
    for row in np.flatnonzero(by == 2)[:20]:
        first, second = whole.projection_view[whole.projection_point == row]
        assert abs(first - second) in (1, 5), "only neighbours overlap"


def test_every_image_brings_its_agents_and_the_camera_tells_them_apart(trained):
    import torch
    from xd3d.stages.train.loader import evaluation_batch

    run, done = trained
    assert done["extract"]["done"] == done["prepare"]["images"]
    network, domain = run.network.eval(), run.domain("target", "test")
    assert network.cameras == 6
    batch = evaluation_batch(domain, network.plan, 0)
    assert batch.images.camera.tolist() == list(range(6))
    images = batch.images.prepared(normalise=network.fusion.normalise)
    with torch.no_grad():
        queries, _ = network.image_queries(images)
        turned = network.image_queries(replace(images, camera=images.camera.roll(1)))[0]
    assert queries.shape == (1, 6, 16)
    assert not torch.equal(queries, turned)


def test_the_score_and_the_report_look_all_around(trained, tmp_path):
    run, _ = trained
    card = run.score()
    index = run.domains.index("nuscenes")
    assert card.protocol.cameras == CAMERAS
    assert len(index.images_of(0)) == 6
    report = tmp_path / "report.html"
    build_report(run, report)
    page = report.read_text()
    assert all(f"over the image of {camera}" in page for camera in CAMERAS)
    for heading in ("Which agents the points read", "What the queries look at"):
        assert heading in page
    assert "by how many cameras see them" in page


def test_arrays_of_all_cameras_are_predicted_as_the_frame_and_a_strange_camera_is_refused(trained):
    import xd3d
    from PIL import Image
    from xd3d.errors import ConfigError
    from xd3d.stages.datasets.readers import READERS
    from xd3d.stages.predict.inference import predict_frames
    from xd3d.stages.predict.whole_sweeps import sweep_prediction

    run, _ = trained
    domain = replace(run.domain("target", "test"), frames=run.domain("target", "test").frames[:1])
    index, row = domain.index, int(domain.frames[0])
    images = {
        str(index.images.camera[image]): (
            np.asarray(Image.open(index.root / str(index.images.path[image]))),
            index.images.intrinsics[image],
            index.images.camera_from_lidar[image],
        )
        for image in reversed(index.images_of(row))
    }
    points = READERS["nuscenes"].read_sweep(index, row).points
    loaded = xd3d.load_run(run.folder, workspace=run.workspace)
    found = loaded.predict(points, images)
    (expected,) = predict_frames(run.network, domain)
    whole = sweep_prediction(run.network, domain, 0, domain.load(0), expected)
    for name in ("fused", "xm", "3d", "2d"):
        np.testing.assert_array_equal(found.labels[name], whole.classes(name))
    few = {name: images[name] for name in ("CAM_BACK", "CAM_FRONT")}
    assert (loaded.predict(points, few).labels["2d"] >= 0).sum() < (found.labels["2d"] >= 0).sum()
    with pytest.raises(ConfigError, match=r"6 camera.*'CAM_REAR'.*CAM_"):
        loaded.predict(points, {"CAM_REAR": images["CAM_BACK"]})
