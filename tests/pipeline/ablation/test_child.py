"""What a run's scores say: each reading on each domain, and 3D without any image where the network can do without."""

import pytest
from xd3d.pipeline import jobs
from xd3d.pipeline.ablation.child import Task, perform
from xd3d.pipeline.workspace import Workspace

QUICK = [
    "extract.image_size=[48,80]",
    "extract.taps=[up1]",
    "extract.agents.count=4",
    "extract.agents.rounds=1",
    "train.steps=1",
    "train.batch_size=1",
    "fusion.tokens=8",
    "fusion.query_channels=16",
    "data.source.domain=usa",
    "data.target.domain=all",
    "data.validate_on=target",
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny_nuscenes_root):
    made = Workspace(home=tmp_path_factory.mktemp("work"))
    jobs.prepare(made, "nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT")
    jobs.extract(made, "nuscenes", "default", QUICK[:4], None, retry_failed=False)
    return made


@pytest.mark.parametrize("variant", ["full", "full-refine"])
def test_lidar_only_is_scored_where_the_3d_head_needs_no_image(workspace, tmp_path, variant):
    task = Task(
        preset=f"ablation/{variant}",
        overrides=QUICK,
        run=variant,
        start=None,
        domains={"city": "singapore", "source": "usa"},
        result="",
    )
    done = perform(workspace, task)
    assert (list(done["scores"]), done["steps"]) == (["city", "source"], 1)
    for scores in done["scores"].values():
        assert None not in (scores["miou"][reading] for reading in ("2d", "3d", "xm", "fused"))
    city = done["scores"]["city"]["miou"]
    assert city["3d_lidar_only"] == (None if variant == "full-refine" else pytest.approx(city["3d"]))
    assert done["scores"]["city"]["points"] != done["scores"]["source"]["points"]
