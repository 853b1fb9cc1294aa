"""What belongs to the machine and not to the run: device, sparse backend, and what is left of a stopped training."""

import json
import shutil

import numpy as np
import pytest
import torch
from xd3d.errors import BackendError, ConfigError, MissingDataError, RunError
from xd3d.pipeline import jobs
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.options import machine_settings
from xd3d.pipeline.predict_sweeps import predict
from xd3d.pipeline.pseudo_labels import pseudo_label
from xd3d.pipeline.runs import TrainedRun, run_name
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.train.checkpoint import Best, TrainState, checkpoint_steps, save_checkpoint
from xd3d.stages.train.optimise import Stepper

SMALL = (
    *("fusion.variant=3d-only", "model.preset=slim", "train.batch_size=1", "train.workers=0"),
    *("train.checkpoint_every=1", "train.validate_every=9"),
)


@pytest.fixture(scope="module")
def workspace(tiny_nuscenes_root, tmp_path_factory):
    """A workspace with a LiDAR-only run ``here`` of two steps."""
    made = Workspace(home=tmp_path_factory.mktemp("machines") / "work")
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=made)
    train(made, "here", "train.steps=2")
    return made


@pytest.fixture
def elsewhere(workspace, monkeypatch):
    """The same run as a machine with a GPU and spconv by name would have recorded it; neither is here."""
    run = workspace.run("elsewhere")
    shutil.copytree(workspace.run("here"), run)
    record = json.loads((run / "run.json").read_text())
    record["model"]["backend"], record["train"]["device"] = "spconv", "cuda"
    (run / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr("xd3d.stages.train.sparse.spconv_build.metadata.distributions", list)
    yield run
    shutil.rmtree(run)


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "sweep.npy"
    np.save(path, np.random.default_rng(0).normal(0, 9, (500, 3)))
    return path


def train(workspace, run, *overrides):
    return jobs.train(
        "default",
        (*SMALL, *overrides),
        cached=False,
        run=run if run is None else workspace.run(run),
        workspace=workspace,
    )


def score(workspace, run, *machine):
    named = workspace.run(run) if run else None
    return jobs.evaluate(named, split="train", domain="source", absent=None, machine=machine, workspace=workspace)


def test_a_run_of_another_backend_and_device_is_read_with_those_of_this_machine(workspace, elsewhere, sweep, tmp_path):
    here, there = (score(workspace, run).result for run in ("here", "elsewhere"))
    assert there["confusion"] == here["confusion"]
    labels = []
    for run in ("here", "elsewhere"):
        predict(workspace, workspace.run(run), sweep, out=tmp_path / run, columns=None, picture=False)
        labels.append((tmp_path / run / "sweep.label").read_bytes())
    assert labels[0] == labels[1]
    jobs.evaluate(elsewhere, split=None, domain="target", absent=None, workspace=workspace)
    report = jobs.report(elsewhere, tmp_path / "report.html", workspace=workspace).result["report"]
    assert "Scores on the target domain" in (tmp_path / report).read_text()
    assert pseudo_label(elsewhere, workspace=workspace).result["frames"] > 0


def test_a_run_of_another_backend_resumes_with_that_of_this_machine(workspace, elsewhere):
    for checkpoint in elsewhere.glob("checkpoints/*"):
        shutil.rmtree(checkpoint)
    assert train(workspace, "elsewhere", "train.steps=2").result["steps"] == 2
    assert checkpoint_steps(elsewhere) == checkpoint_steps(workspace.run("here"))


def test_a_run_that_is_validated_while_it_is_read_has_the_step_of_the_weights_that_were_read(workspace, tmp_path):
    run = shutil.copytree(workspace.run("here"), tmp_path / "run")
    trained = TrainedRun.open(workspace, run)
    network, read = trained.network, max(checkpoint_steps(run))
    optimiser = torch.optim.Adam(network.parameters())
    state = TrainState(network=network, optimiser=optimiser, scaler=torch.amp.GradScaler("cpu"))
    save_checkpoint(run, state, step=read + 1, best=Best(step=read + 1, metric="fused", miou=1.0))
    assert trained.step == read


def test_the_device_and_the_backend_of_a_run_can_be_told(workspace):
    chosen = ["train.device=cpu", "model.backend=spconv"]
    assert TrainedRun.open(workspace, workspace.run("here"), chosen).network.backend == "spconv"
    assert TrainedRun.open(workspace, workspace.run("here")).network.backend == "torch"
    config = TrainedRun.open(workspace, workspace.run("here"), machine_settings("cpu", ["extract.batch_size=3"])).config
    assert (config.train.device, config.extract.device, config.extract.batch_size) == ("cpu", "cpu", 3)
    with pytest.raises(BackendError, match=r"CUDA"):
        score(workspace, "here", *machine_settings("cuda", None))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.preset=full", r"model\.preset is a setting of the run.*model\.backend"),
        ("model={backend: torch, voxel_size: 1}", r"model\.voxel_size is a setting of the run"),
        ("evaluate.split=val", "evaluate\\.split is a setting of the run"),
        ("model.backend=tensor", r"model\.backend: .*'tensor'"),
        ("backend", "KEY=VALUE"),
    ],
)
def test_what_is_the_runs_own_is_not_set_anew(workspace, override, words):
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        score(workspace, "here", override)


def test_every_command_that_reads_a_run_takes_them(xd3d, workspace, sweep):
    home = str(workspace.home)
    source = ("--run", "here", "--domain", "source", "--split", "train")
    done = xd3d("evaluate", *source, "--device", "cpu", "--set", "model.backend=torch", "--json", XD3D_HOME=home)
    assert done.returncode == 0, done.stderr
    for command in (("evaluate", *source), ("predict", str(sweep), "--run", "here"), ("pseudo-label", "--run", "here")):
        done = xd3d(*command, "--device", "cuda", XD3D_HOME=home)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert "is cuda, and PyTorch sees no CUDA device" in done.stderr
    done = xd3d("report", "--device", "gpu", XD3D_HOME=home)
    assert done.returncode == 2
    assert "--device" in done.stderr


def test_a_run_has_the_same_name_on_every_machine(workspace):
    def name(*overrides):
        resolved = load_config("default", (*SMALL, *overrides))
        return run_name(resolved, DomainOpener(workspace, resolved.config, cached=False), cached=False)

    assert name("model.backend=spconv", "train.device=cuda") == name("model.backend=torch") == name()
    assert name("train.seed=5") != name()


def test_a_stopped_training_is_the_last_run_and_its_scores_say_how_far_it_had_come(workspace, monkeypatch):
    do_step = Stepper.step

    def step(self, number, batches):
        if number == 3:
            raise KeyboardInterrupt
        return do_step(self, number, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(workspace, "stopped", "train.steps=5")
    assert workspace.last_run() == workspace.run("stopped")
    done = score(workspace, None)
    assert "has done 3 of 5 steps" in done.text
    assert (done.result["protocol"]["reached"], done.result["protocol"]["planned"]) == (3, 5)
    with pytest.raises(RunError, match="other settings"):
        train(workspace, "here", "train.steps=9")
    assert workspace.last_run() == workspace.run("stopped"), "what was refused did not begin"
    train(workspace, "stopped", "train.steps=5")
    assert "steps, and" not in score(workspace, None).text


def test_a_run_that_was_not_remembered_is_named_where_there_is_no_last_one(tmp_path, workspace):
    other = Workspace(home=tmp_path / "work")
    shutil.copytree(workspace.run("here"), other.run("kept"))
    with pytest.raises(MissingDataError, match=r"--run DIR.*kept"):
        TrainedRun.open(other, None)


def test_commands_that_train_on_the_way_take_no_other_process_for_theirs(workspace, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = train(workspace, "single", "train.steps=1")
    assert json.loads((workspace.run("single") / "run.json").read_text())["processes"] == 1
    assert (workspace.run("single") / "log.jsonl").read_text()
    assert done.result["steps"] == 1
