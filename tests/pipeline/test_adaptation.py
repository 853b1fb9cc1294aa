"""The three ways to adapt, as a user goes them, on a target whose labels cannot be read."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from xd3d.errors import ConfigError, MissingDataError, RunError
from xd3d.pipeline import jobs
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener, open_index
from xd3d.pipeline.pseudo_labels import pseudo_label
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.splits import domain_frames
from xd3d.stages.train.run_log import read_log

SMALL = (
    "extract.image_size=[48,80]",
    "extract.agents.count=16",
    "model.preset=slim",
    "train.steps=2",
    "train.batch_size=2",
    "train.milestones=[1]",
    "train.validate_every=2",
)
SHIFTS = ("nuscenes_usa_singapore", "nuscenes_singapore_usa", "nuscenes_day_night")


def test_uda_then_pseudo_labels_then_without_the_source_on_a_target_whose_labels_cannot_be_read(broken_root, tmp_path):
    root, workspace = broken_root(), Workspace(home=tmp_path / "work")
    jobs.prepare("nuscenes", root, version=None, cameras="CAM_FRONT", workspace=workspace)
    jobs.extract_features("nuscenes", "default", SMALL, None, retry_failed=False, workspace=workspace)
    index = open_index(workspace, "nuscenes")
    for row in domain_frames(index, "singapore", "train"):
        path = root / str(index.frames.labels[row])
        np.full(path.stat().st_size, 200, np.uint8).tofile(path)

    def train(*changes):
        return Path(jobs.train("default", [*SMALL, *changes], cached=True, run=None, workspace=workspace).result["run"])

    with pytest.raises(MissingDataError, match="xd3d pseudo-label"):
        train("train.lam_pl=1")
    uda = train("train.lam_trg=0.1")
    made = pseudo_label(workspace=workspace).result
    assert made["frames"] == len(domain_frames(index, "singapore", "train"))
    assert set(made["kept"]) == {"2d", "3d"}
    assert all(0.4 < share <= 1 for share in made["kept"].values())
    assert pseudo_label(workspace=workspace).result == made, "what is there is found again"
    done = pseudo_label(uda, agree=True, vote=True, workspace=workspace)
    assert "--set train.pl_agree=true --set train.pl_vote=true" in done.text
    agreed = done.result
    assert agreed["pseudo_labels"] != made["pseudo_labels"]
    assert all(agreed["kept"][head] <= made["kept"][head] for head in ("2d", "3d"))
    with pytest.raises(RunError, match=r"rule: expected \[\]"):
        train("train.lam_pl=1")
    learned = train(*(f"train.{text}" for text in (f"init={uda.name}", "lam_pl=1", "teacher=ema", "pl_agree=true")))
    assert {"ce_3d", "pl_2d", "pl_3d"} <= read_log(learned)[0].keys()
    text = pseudo_label(learned, workspace=workspace).text
    assert text.endswith("--set train.lam_pl=1 --set train.teacher=stored --set train.pl_agree=false")
    assert pseudo_label(uda, workspace=workspace).result == made
    with pytest.raises(RunError, match=r"target\.frame_rows"):
        train("train.lam_trg=0.1", "train.lam_pl=1", "data.target.domain=night")
    for row in domain_frames(index, "usa", "train"):
        (root / str(index.frames.sweep[row])).unlink()
    free = train(f"train.init={uda.name}", "train.source_free=true", "train.lam_trg=0.1", "train.lam_pl=1")
    assert free != uda
    assert {"xm_2d_target", "xm_3d_target", "pl_2d", "pl_3d"} <= read_log(free)[0].keys()
    scored = jobs.evaluate(None, split="val", domain="target", absent=None, workspace=workspace).result
    assert scored["protocol"]["checkpoint"] == str(free)


@pytest.mark.parametrize("changes", [(), ("train.lam_pl=1", "train.teacher=ema")], ids=["none", "ema"])
def test_named_pseudo_labels_that_are_not_learned_are_refused(tmp_path, changes):
    config = load_config("default", ["data.pseudo_labels=mine", *changes]).config
    teacher = "ema" if changes else "stored"
    with pytest.raises(ConfigError, match=rf"data\.pseudo_labels=mine.*train\.teacher={teacher}"):
        DomainOpener(Workspace(home=tmp_path), config, cached=True).target()


def test_every_command_of_the_guide_has_a_preset_and_settings_that_are_there():
    guide = (Path(__file__).resolve().parents[2] / "docs/adaptation.md").read_text(encoding="utf-8")
    commands = [line.split() for line in guide.splitlines() if line.startswith("xd3d ")]
    assert {command[1] for command in commands} == {
        "prepare",
        "extract-features",
        "train",
        "pseudo-label",
        "evaluate",
        "predict",
    }
    for command in commands:
        options = dict(itertools.pairwise(command))
        if command[1] == "train" and not options["--config"].endswith(".yaml"):  # tests/pipeline/test_folder.py runs it
            load_config(options["--config"], [options["--set"]] if "--set" in options else [])


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_presets_of_adaptation_differ_from_generalisation_by_what_adapts(shift):
    ways = {way: load_config(f"{shift}/{way}").config for way in ("dg", "uda", "uda_pl", "sfda")}
    weights = {way: (config.train.lam_src, config.train.lam_trg, config.train.lam_pl) for way, config in ways.items()}
    assert weights == {"dg": (1, 0, 0), "uda": (1, 0.1, 0), "uda_pl": (1, 0.1, 1), "sfda": (1, 0.1, 1)}
    for way in ("uda", "uda_pl"):
        assert ways[way].train.model_copy(update={"lam_trg": 0.0, "lam_pl": 0.0}) == ways["dg"].train
    assert [way for way, config in ways.items() if config.train.source_free] == ["sfda"]
