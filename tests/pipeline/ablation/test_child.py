"""What a run's scores say: each reading on each domain, and 3D without any image where the network can do without."""

import pytest
from xd3d.pipeline import jobs
from xd3d.pipeline.ablation.child import run_training
from xd3d.pipeline.ablation.plan import Training
from xd3d.pipeline.ablation.variants import PRETRAININGS, VARIANTS
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.train.record import read_record
from xd3d.stages.train.run_log import read_log

QUICK = [
    "extract.image_size=[48,80]",
    "extract.taps=[up1]",
    "extract.agents.count=4",
    "extract.agents.rounds=1",
    "model.preset=slim",
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
    return Training(variant={**VARIANTS, **PRETRAININGS}[variant], overrides=tuple(overrides), **{**given, **values})


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


def test_adapted_normalisation_is_tested_on_the_run_that_is_there_and_trains_nothing(workspace):
    first = training("full")
    plain = run_training(workspace, first, DOMAINS)
    runs = sorted(path.name for path in workspace.run(first.run).parent.iterdir())
    adapted = training("full-norm", init=first, digest="1" * 16)
    assert adapted.run == first.run
    done = run_training(workspace, adapted, DOMAINS)
    assert sorted(path.name for path in workspace.run(first.run).parent.iterdir()) == runs
    assert (done["steps"], done["best"]) == (plain["steps"], plain["best"])
    for domain in DOMAINS:
        assert done["scores"][domain]["miou"] != plain["scores"][domain]["miou"]
    assert done["scores"]["city"]["miou"]["3d_lidar_only"] != plain["scores"]["city"]["miou"]["3d_lidar_only"]


def test_lidar_alone_starts_from_a_network_pretrained_on_further_domains(workspace):
    first = training("pretraining")
    run_training(workspace, training("pretrain", init=first), DOMAINS)
    pretrained, trained = (read_record(workspace.run(f"{name}-seed1-00000000")) for name in ("pretraining", "pretrain"))
    assert (pretrained["kind"], trained["init"]["run"]) == ("pretrain", first.run)
    assert pretrained["target"] is not None
    assert trained["fusion"]["variant"] == "3d-only"
