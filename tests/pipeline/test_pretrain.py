"""``xd3d pretrain`` without labels, and what is trained from it without images."""

import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from xd3d.errors import ConfigError, RunError
from xd3d.pipeline import jobs
from xd3d.pipeline.domains import open_index
from xd3d.pipeline.pretrain import pretrain
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.splits import domain_frames
from xd3d.stages.train.record import read_record
from xd3d.stages.train.run_log import read_log

SMALL = (
    *("extract.image_size=[48,80]", "extract.agents.count=16", "extract.agents.rounds=2"),
    "model.preset=slim",
    *("train.steps=2", "train.batch_size=2", "train.milestones=[1]", "train.validate_every=2"),
)


def test_pretrained_where_labels_cannot_be_read_and_trained_where_there_is_no_image(broken_root, tmp_path, monkeypatch):
    root, workspace = broken_root(), Workspace(home=tmp_path / "work")
    jobs.prepare("nuscenes", root, version=None, cameras="CAM_FRONT,CAM_BACK", workspace=workspace)
    jobs.extract_features("nuscenes", "default", SMALL, None, retry_failed=False, workspace=workspace)
    (root / "lidarseg").rename(root / "elsewhere")

    def pretrained(*changes, config="default", run=None, said="xd3d train --cached --set train.init={name}"):
        done = pretrain(config, [*SMALL, *changes], cached=True, run=run, workspace=workspace)
        made = Path(done.result["run"])
        assert all(f"--set {shlex.quote(change)}" in done.text for change in (*SMALL, *changes))
        assert said.format(name=made.name) in done.text
        return made

    mine, elsewhere = tmp_path / "mine.yaml", tmp_path / "elsewhere"
    mine.write_text("extends: default\ndata: {pseudo_labels: those of the training}\n")
    said = f"xd3d train --cached --config {mine} --set train.init={elsewhere}"
    source = pretrained("data.merge=nuscenes-16", config=str(mine), run=elsewhere, said=said)
    both = pretrained("train.lam_trg=0.1")
    assert pretrained("train.lam_trg=0.1") == both, "the same call finds the finished run"
    index = open_index(workspace, "nuscenes")
    counts = {name: len(domain_frames(index, name, "train")) for name in ("usa", "singapore")}
    for run, target in ((source, None), (both, counts["singapore"])):
        record = read_record(run)
        assert record["source"]["frames"] == counts["usa"]
        assert (record["target"] or {"frames": None})["frames"] == target
    assert "distance_target" in read_log(both)[0]
    with pytest.raises(RunError, match=rf"train\.init={both.name}"):
        jobs.evaluate(both, split=None, domain="target", absent=None, workspace=workspace)
    with pytest.raises(ConfigError, match=r"train\.init"):
        pretrained("train.init=other")

    (root / "elsewhere").rename(root / "lidarseg")
    shutil.rmtree(root / "samples/CAM_FRONT")
    shutil.rmtree(workspace.home / "cache")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    lidar = ("fusion.variant=3d-only", "data.merge=nuscenes-16", f"train.init={both.name}")
    trained = Path(jobs.train("default", [*SMALL, *lidar], cached=True, run=None, workspace=workspace).result["run"])
    shutil.rmtree(both)
    scores = jobs.evaluate(trained, split="test", domain="target", absent=None, workspace=workspace).result["miou"]
    assert scores["2d"] is None
    assert np.isfinite(scores["3d"])


def test_a_pair_without_validation_and_without_common_classes_pretrains_and_is_refused_in_training(
    twin_of, tmp_path, monkeypatch
):
    workspace = Workspace(home=tmp_path / "work")
    both = [f"data.{side}={{dataset: a2d2, domain: all}}" for side in ("source", "target")]
    few = [*SMALL, *both, "train.lam_trg=0.1", "train.batch_size=1", "train.steps=1"]
    jobs.prepare("a2d2", twin_of("a2d2"), overrides=few, workspace=workspace)
    jobs.extract_features("a2d2", overrides=few, workspace=workspace)
    monkeypatch.setenv("RANK", "0")  # a batch system leaves these; no other process is waited for
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = pretrain("default", few, cached=True, workspace=workspace)
    run = Path(done.result["run"])
    assert f"xd3d train --cached --config CONFIG --set train.init={run.name}, where" in done.text, "not the same config"
    assert read_record(run)["source"] == read_record(run)["target"]
    with pytest.raises(ConfigError, match="merge nuscenes-6 is for nuscenes, not for a2d2"):
        jobs.train("default", few, cached=True, workspace=workspace)
    with pytest.raises(ConfigError, match=r"data\.validate_on=none"):
        jobs.train("default", [*few, "data.merge=a2d2-nuscenes-8"], cached=True, workspace=workspace)
