"""A run whose 3D head needs no camera, used on a machine that has LiDAR sweeps and nothing of stage one."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from xd3d.errors import ConfigError, DataError, RunError
from xd3d.pipeline.config import load_config
from xd3d.pipeline.runs import run_facts
from xd3d.pipeline.workspace import Workspace

GUIDE = Path(__file__).parents[2] / "docs" / "predict.md"

WITHOUT_STAGE_ONE = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"diffusers", "transformers", "huggingface_hub", "zarr", "numcodecs", "nuscenes"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Forbidden())
from xd3d.pipeline.cli import main
main()
"""

SETTINGS = (
    *("model.preset=slim", "fusion.head=distil", "fusion.tokens=6", "fusion.query_channels=16", "fusion.rank=3"),
    *("train.steps=2", "train.batch_size=2", "train.workers=0", "train.device=cpu"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A workspace with an index and a trained run ``distil``, and a run ``refine`` that was only begun."""
    from xd3d.stages.train.loop import train
    from xd3d.stages.train.record import read_record, write_record

    path = Path(__file__).parents[1] / "stages" / "tiny_domains.py"
    spec = importlib.util.spec_from_file_location("tiny_domains", path)
    tiny_domains = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_domains)

    folder = tmp_path_factory.mktemp("lidar only")
    workspace = Workspace(home=folder / "home")
    domain = tiny_domains.write_domain(folder / "data", frames=6)
    domain.index.save(workspace.index("nuscenes"))
    resolved = load_config("default", SETTINGS)
    config = resolved.config
    train(
        run=workspace.run("distil"),
        source=domain,
        validation=None,
        model=config.model,
        fusion=config.fusion,
        augment=config.augment,
        settings=config.train,
        facts=run_facts(resolved, cached=True),
    )
    workspace.remember_run(workspace.run("distil"))
    record = read_record(workspace.run("distil"))
    refined = {**record["fusion"], "queries": "agents", "head": "refine"}
    write_record(workspace.run("refine"), {**record, "fusion": refined})
    return workspace.home


@pytest.fixture
def command(home, xd3d):
    """Run ``xd3d ARGS`` in this process with the workspace; the finished process."""
    return partial(xd3d, XD3D_HOME=str(home))


@pytest.fixture
def lidar_only(home, tmp_path):
    """Run ``xd3d ARGS`` where nothing of stage one can be imported; the finished process."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_STAGE_ONE, *arguments],
            cwd=tmp_path,
            env={**os.environ, "XD3D_HOME": str(home), "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def facts_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_evaluation_needs_nothing_of_stage_one_and_scores_the_3d_head(lidar_only, home):
    card = facts_of(lidar_only("evaluate", "--lidar-only", "--domain", "source", "--split", "train", "--json"))
    assert card["points"] > 1000
    assert card["miou"]["2d"] is card["miou"]["xm"] is None
    assert 0 <= card["miou"]["3d"] <= 1
    assert card["protocol"]["features"] == "none"
    kept = home / "runs" / "distil" / "scores" / "source-train-lidar-only.json"
    assert json.loads(kept.read_text())["miou"] == card["miou"]


def test_prediction_needs_nothing_of_stage_one_and_says_what_its_labels_mean(lidar_only, command, home):
    sweeps = home.parent / "data"
    facts = facts_of(lidar_only("predict", str(sweeps), "--columns", "5", "--json"))
    out = Path(facts["out"])
    assert out == home / "labels" / "distil" / "data"
    assert (facts["sweeps"], facts["labelled"], facts["kept"], facts["points"]) == (6, 6, 0, 1800)
    labels = np.fromfile(out / "3.label", "<u4")
    assert len(labels) == len(np.fromfile(sweeps / "3.bin", np.float32)) // 5
    described = json.loads((out / "classes.json").read_text())
    assert [one["label"] for one in described["classes"]] == list(range(7))
    assert [one["name"] for one in described["classes"]] == ["unlabelled", *facts["classes"]]
    assert all(0 <= part <= 255 for one in described["classes"] for part in one["colour"])
    again = facts_of(command("predict", str(sweeps), "--columns", "5", "--json"))
    assert (again["labelled"], again["kept"]) == (0, 6)
    other = command("predict", str(sweeps / "0.bin"), "--columns", "5", "--out", str(out))
    assert other.returncode == 2
    assert "labels of other sweeps" in other.stderr


def test_a_name_with_dots_means_the_folder_it_leads_to(home, tmp_path, monkeypatch):
    from xd3d.pipeline.predict_sweeps import predict

    sweeps = tmp_path / "sweeps"
    (sweeps / "below").mkdir(parents=True)
    np.save(sweeps / "a.npy", np.random.default_rng(0).normal(0, 9, (50, 3)))
    monkeypatch.chdir(sweeps / "below")
    done = predict(Workspace(home=home), None, Path(".."), out=None, columns=None, picture=False)
    assert Path(done.result["out"]) == home / "labels" / "distil" / "sweeps"
    again = predict(Workspace(home=home), None, sweeps, out=None, columns=None, picture=False)
    assert again.result["kept"] == 1


@pytest.mark.parametrize("damage", [[], {"format": 1}, {"facts": {}}, {"fusion": {"colour": "red"}}], ids=str)
def test_a_run_whose_record_is_not_whole_is_named(home, tmp_path, damage):
    from xd3d.pipeline.predict_sweeps import predict
    from xd3d.stages.train.record import read_record

    whole = read_record(home / "runs" / "distil")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({**whole, **damage} if damage and damage != {"format": 1} else damage))
    with pytest.raises(RunError, match=r"run\.json"):
        predict(Workspace(home=home), run, home.parent / "data", out=tmp_path / "out", columns=5, picture=False)


def test_no_report_shows_the_score_of_an_earlier_checkpoint(home, tmp_path):
    from xd3d.pipeline import jobs

    workspace = Workspace(home=home)
    jobs.evaluate(None, split="train", domain="source", absent=None, lidar_only=True, workspace=workspace)
    scores = home / "runs" / "distil" / "scores"
    card = json.loads((scores / "source-train-lidar-only.json").read_text())
    (scores / "target-test.json").write_text(json.dumps({**card, "protocol": {**card["protocol"], "step": 1}}))
    with pytest.raises(RunError, match=r"step 1.*step 2.*xd3d evaluate"):
        jobs.report(None, tmp_path / "report.html", workspace=workspace)
    (scores / "target-test.json").unlink()


def test_a_refine_run_is_refused_with_the_remedy(command, home):
    for arguments in (("predict", str(home.parent / "data" / "0.bin")), ("evaluate", "--lidar-only")):
        done = command(*arguments, "--run", "refine")
        assert done.returncode == 1
        assert "--set fusion.head=distil" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_damaged_sweep_is_named_and_the_whole_one_is_drawn_and_read_as_the_guide_says(
    xd3d, home, tmp_path, monkeypatch
):
    sweeps = tmp_path / "sweeps"
    sweeps.mkdir()
    (sweeps / "a.bin").write_bytes(b"\0" * 7)
    np.save(sweeps / "000000.npy", np.random.default_rng(0).normal(0, 9, (500, 3)))
    done = xd3d("predict", "sweeps", "--out", "labels", "--picture", "--json", XD3D_HOME=str(home))
    assert done.returncode == 1, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert [Path(fault["file"]).name for fault in facts["failed"]] == ["a.bin"]
    with Image.open(facts["picture"]) as picture:
        assert Path(facts["picture"]) == tmp_path / "labels" / "000000.labels.png"
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    (recipe,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(recipe, str(GUIDE), "exec"), names)
    assert names["colours"].shape == (500, 3)


def test_label_files_that_someone_else_made_are_neither_replaced_nor_taken_for_ours(home, tmp_path):
    from xd3d.pipeline.predict_sweeps import predict

    sweeps, truth = tmp_path / "velodyne", tmp_path / "labels"
    sweeps.mkdir()
    truth.mkdir()
    np.save(sweeps / "0.npy", np.random.default_rng(0).normal(0, 9, (50, 3)))
    (truth / "0.label").write_bytes(b"true")
    (sweeps / "0.png").write_bytes(b"a photograph")
    (sweeps / "classes.json").write_text('{"car": 1}')
    for folder in (truth, sweeps):
        with pytest.raises((ConfigError, DataError), match=r"with --out"):
            predict(Workspace(home=home), None, sweeps, out=folder, columns=None, picture=False)
    (sweeps / "classes.json").unlink()
    predict(Workspace(home=home), None, sweeps, out=sweeps, columns=None, picture=True)
    assert (truth / "0.label").read_bytes() == b"true"
    assert (sweeps / "0.png").read_bytes() == b"a photograph"
    assert (sweeps / "0.labels.png").exists()


def test_a_sweep_that_went_bad_is_not_drawn_with_its_old_labels(home, tmp_path):
    from xd3d.pipeline.predict_sweeps import predict

    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(0, 9, (50, 3)))
    options = {"out": tmp_path / "out", "columns": None, "picture": True}
    predict(Workspace(home=home), None, tmp_path, **options)
    (tmp_path / "a.npy").write_bytes(b"\0")
    done = predict(Workspace(home=home), None, tmp_path, **options)
    assert (done.exit_code, Path(done.result["picture"]).name) == (1, "b.labels.png")


def test_a_file_of_a_checkpoint_is_not_taken_for_a_run(home, tmp_path):
    from xd3d.pipeline.predict_sweeps import predict

    weights = next((home / "runs/distil").glob("checkpoints/*/model.safetensors"))
    with pytest.raises(RunError, match=r"run\.json"):
        predict(Workspace(home=home), weights, home.parent / "data", out=tmp_path, columns=5, picture=False)


@pytest.mark.slow
def test_a_prediction_that_was_killed_resumes_and_ends_with_the_same_bytes(home, tmp_path, lidar_only):
    sweeps, out = tmp_path / "sweeps", tmp_path / "labels"
    sweeps.mkdir()
    for number in range(30):
        np.save(sweeps / f"{number:02d}.npy", np.random.default_rng(number).normal(0, 20, (2000, 3)))
    command = ("predict", str(sweeps), "--out", str(out), "--json")
    environment = {**os.environ, "XD3D_HOME": str(home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", WITHOUT_STAGE_ONE, *command], env=environment, stderr=-3)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.label"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.read_bytes() for path in out.glob("*.label")}
    assert 3 <= len(before) < 30
    facts = facts_of(lidar_only(*command))
    assert facts["kept"] >= len(before) - 1  # the last may have been written and not noted yet
    assert facts["kept"] + facts["labelled"] == len(list(out.glob("*.label"))) == 30
    assert all(path.read_bytes() == content for path, content in before.items())


def test_raw_ids_are_those_of_the_runs_source_and_a_coloured_cloud_lies_beside_the_labels(command, home, tmp_path):
    from xd3d.stages.datasets.ply import parse_ply

    sweep = home.parent / "data" / "0.bin"
    train = facts_of(command("predict", str(sweep), "--columns", "5", "--out", "train", "--json"))
    options = ("--columns", "5", "--ids", "raw", "--colour", "--picture", "--json")
    raw = facts_of(command("predict", str(sweep), *options, "--out", "raw"))
    assert (train["labelled"], raw["labelled"]) == (1, 1)
    named = {name: json.loads((tmp_path / name / "classes.json").read_text())["classes"] for name in ("train", "raw")}
    ids = {each["name"]: each["label"] for each in named["raw"]}
    # of the 32 ids of nuScenes-lidarseg the first of each merged class
    assert ids["driveable_surface"] == 24
    assert ids["unlabelled"] == 0
    assert [each["name"] for each in named["raw"]] == [each["name"] for each in named["train"]]
    table = np.array([each["label"] for each in named["raw"]])
    written = {name: np.fromfile(tmp_path / name / "0.label", "<u4") for name in named}
    np.testing.assert_array_equal(written["raw"], table[written["train"]])
    content = (tmp_path / "raw" / "0.labels.ply").read_bytes()
    points = np.fromfile(sweep, np.float32).reshape(-1, 5)[:, :3]
    np.testing.assert_array_equal(parse_ply(content, Path()), points)
    fields = [*((axis, "<f4") for axis in "xyz"), ("colour", "u1", 3), ("label", "<u4")]
    vertices = np.frombuffer(content.partition(b"end_header\n")[2], fields)
    colours = np.array([each["colour"] for each in named["train"]])[written["train"]]
    np.testing.assert_array_equal(vertices["colour"], colours)
    np.testing.assert_array_equal(vertices["label"], written["raw"])
    assert Path(raw["picture"]).exists()
    mixed = command("predict", str(sweep), "--columns", "5", "--out", "raw")
    assert mixed.returncode == 2
    assert "other classes" in mixed.stderr


def test_a_coloured_cloud_is_no_sweep_and_keeps_doubles(home, tmp_path):
    from xd3d.pipeline.predict_sweeps import predict
    from xd3d.stages.datasets.ply import parse_ply

    far = np.random.default_rng(0).normal((4e6, 5e5, 0), 9, (50, 3))
    np.save(tmp_path / "a.npy", far)
    for _ in range(2):
        done = predict(Workspace(home=home), None, tmp_path, out=tmp_path, columns=None, picture=False, colour=True)
        assert done.result["sweeps"] == 1
    np.testing.assert_array_equal(parse_ply((tmp_path / "a.labels.ply").read_bytes(), Path()), far)
