"""The rule of fusion from the settings to the score: the run's own, another for one call, and that of old runs."""

import json
from pathlib import Path

import pytest
from xd3d.errors import RunError
from xd3d.pipeline import jobs
from xd3d.pipeline.report import analysis, build, clouds
from xd3d.pipeline.report.build import build_report
from xd3d.pipeline.runs import TrainedRun
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.predict.inference import predict_frames

SETTINGS = [
    *("fusion.variant=image", "fusion.image_channels=8", "model.preset=slim"),
    *("extract.image_size=[48,80]", "extract.taps=[up1,rgb]", "extract.agents.count=4", "extract.device=cpu"),
    *("train.steps=2", "train.batch_size=2", "train.validate_every=1", "train.workers=0", "train.device=cpu"),
    *("data.source.domain=usa", "data.target.domain=all", "data.validate_on=target"),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny_nuscenes_root):
    """A workspace with two runs: ``new``, and ``old``, as they were before there was a choice of rule."""
    made = Workspace(home=tmp_path_factory.mktemp("work"))
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=made)
    jobs.extract_features("nuscenes", "default", SETTINGS, None, retry_failed=False, workspace=made)
    jobs.train("default", [*SETTINGS, "evaluate.fusion=sum"], cached=True, run=Path("old"), workspace=made)
    jobs.train("default", SETTINGS, cached=True, run=Path("new"), workspace=made)
    return made


def record_of(run):
    return json.loads((run / "run.json").read_text())


def evaluate(workspace, run, **options):
    return jobs.evaluate(
        Path(run), **{"split": None, "domain": "all", "absent": None, **options}, workspace=workspace
    ).result


def test_the_runs_own_rule_scores_unless_another_is_asked_for(workspace, xd3d):
    own = evaluate(workspace, "new")
    assert own["protocol"]["fusion"] == "product-prior"
    assert own["miou"]["fused"] is not None
    done = xd3d(
        "evaluate", "--run", "new", "--domain", "all", "--fusion", "sum", "--json", XD3D_HOME=str(workspace.home)
    )
    assert done.returncode == 0, done.stderr
    summed = json.loads(done.stdout.splitlines()[-1])
    assert summed["protocol"]["fusion"] == "sum"
    assert summed["confusion"]["fused"] == summed["confusion"]["xm"] == own["confusion"]["xm"]
    assert summed["confusion"]["fused"] != own["confusion"]["fused"]
    assert {name: summed["confusion"][name] for name in ("2d", "3d")} == {
        name: own["confusion"][name] for name in ("2d", "3d")
    }


def test_the_best_checkpoint_is_chosen_by_the_fused_score(workspace):
    states = {name: next(workspace.run(name).glob("checkpoints/*/state.json")) for name in ("new", "old")}
    metrics = {name: json.loads(path.read_text())["best"]["metric"] for name, path in states.items()}
    assert metrics == {"new": "fused", "old": "xm"}


def test_a_record_without_a_rule_means_the_sum(workspace):
    assert record_of(workspace.run("new"))["facts"]["evaluate"]["fusion"] == "product-prior"
    assert record_of(workspace.run("old"))["facts"]["evaluate"].keys() == {"split", "absent"}
    assert TrainedRun.open(workspace, Path("old")).config.evaluate.fusion == "sum"
    card = evaluate(workspace, "old")
    assert card["protocol"]["fusion"] == "sum"
    assert card["confusion"]["fused"] == card["confusion"]["xm"]
    assert evaluate(workspace, "old", fusion="product-prior")["confusion"]["fused"] != card["confusion"]["fused"]


def test_an_old_run_resumes_with_the_sum_and_no_other_rule(workspace):
    begun = workspace.run("begun")
    begun.mkdir(parents=True)
    (begun / "run.json").write_text(json.dumps(record_of(workspace.run("old"))))
    with pytest.raises(RunError, match=r"facts\.evaluate\.fusion.*product"):
        jobs.train(
            "default", [*SETTINGS, "evaluate.fusion=product"], cached=True, run=Path("begun"), workspace=workspace
        )
    done = jobs.train("default", SETTINGS, cached=True, run=Path("begun"), workspace=workspace).result
    assert done["steps"] == 2
    assert set(done["best"]) == {"step", "xm"}


def test_the_report_follows_the_rule_of_the_score_it_shows(workspace, tmp_path, monkeypatch):
    run, rules = TrainedRun.open(workspace, Path("new")), set()

    def predict(*given, fusion, **more):
        rules.add(fusion)
        return predict_frames(*given, fusion=fusion, **more)

    for module in (build, clouds, analysis):
        monkeypatch.setattr(module, "predict_frames", predict)
    run.score(fusion="product")
    page = build_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "fused takes all predictions together (product)" in page
    assert "that the fused prediction (product) gets wrong" in page
    assert "prediction (fused)" in page
    assert rules == {"product"}


def test_a_score_from_before_there_was_a_fused_reading_still_has_its_report(workspace, tmp_path):
    run = TrainedRun.open(workspace, Path("old"))
    card = run.score().to_json()
    for counts in (
        card["confusion"],
        *(part["confusion"] for kind in card["parts"].values() for part in kind.values()),
    ):
        del counts["fused"]
    del card["protocol"]["fusion"]
    run.scores_path("target", "test").write_text(json.dumps(card))
    page = build_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "prediction (xM)" in page
