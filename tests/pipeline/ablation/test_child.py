"""What a run's scores say: each reading on each domain, and 3D without any image where the network can do without."""

import pytest
from xd3d.pipeline import jobs
from xd3d.pipeline.ablation.child import run_training
from xd3d.pipeline.ablation.plan import Training
from xd3d.pipeline.ablation.variants import VARIANTS
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.train.log import read_log
from xd3d.stages.train.record import read_record

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
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=made)
    jobs.extract_features("nuscenes", "default", QUICK[:4], None, retry_failed=False, workspace=made)
    return made


DOMAINS = {"city": "singapore", "source": "usa"}


def training(variant, overrides=QUICK, **values):
    given = {"seed": 1, "target": None, "shifts": ("city",), "digest": "0" * 16}
    return Training(variant=VARIANTS[variant], overrides=tuple(overrides), **{**given, **values})


@pytest.mark.parametrize(("variant", "reads_alone"), [("full", True), ("paper", False)])
def test_lidar_only_is_scored_where_a_head_needs_no_image(workspace, variant, reads_alone):
    overrides = [*QUICK, *([] if reads_alone else ["fusion.taps=[up1]"])]
    done = run_training(workspace, training(variant, overrides), DOMAINS)
    assert (list(done["scores"]), done["steps"]) == (["city", "source"], 1)
    for scores in done["scores"].values():
        assert None not in (scores["miou"][reading] for reading in ("2d", "3d", "xm", "fused"))
    assert (done["scores"]["city"]["miou"]["3d_lidar_only"] is not None) == reads_alone
    assert done["scores"]["city"]["points"] != done["scores"]["source"]["points"]


def test_adaptation_begins_with_the_other_run_and_learns_its_labels_of_its_own_target(workspace):
    first = training("full")
    overrides = [*QUICK[:-2], "data.target.domain=singapore", QUICK[-1]]
    adapted = training("uda", overrides, target="city", init=first)
    run_training(workspace, adapted, DOMAINS)
    record = read_record(workspace.run(adapted.run))
    assert record["init"]["run"] == first.run
    assert record["pseudo_labels"]["run"] == first.run
    assert (record["pseudo_labels"]["domain"], record["pseudo_labels"]["fusion"]) == ("singapore", "product-prior")
    assert {"pl_2d", "pl_3d", "pl_lidar"} <= read_log(workspace.run(adapted.run))[0].keys()
