"""``--adapt norm`` from the command line: in the score's protocol, in folders of labels, and never in the run."""

import json
from functools import partial
from pathlib import Path

import pytest
from xd3d.errors import RunError
from xd3d.pipeline import jobs
from xd3d.pipeline.frame_choice import FrameChoice
from xd3d.pipeline.predict_frames import predict_frames
from xd3d.pipeline.predict_sweeps import predict
from xd3d.pipeline.workspace import Workspace

SETTINGS = [
    *("fusion.variant=3d-only", "model.preset=slim", "model.voxel_size=0.2"),
    *("train.steps=2", "train.batch_size=2", "train.validate_every=2", "train.workers=0", "train.device=cpu"),
    *("data.source.domain=usa", "data.target.domain=all", "data.validate_on=target"),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny_nuscenes_root):
    made = Workspace(home=tmp_path_factory.mktemp("work"))
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=made)
    jobs.train("default", SETTINGS, cached=True, run=Path("run"), workspace=made)
    return made


@pytest.fixture
def command(workspace, xd3d):
    """Run a command on the run with ``--json``; returns its exit code, its JSON or its error."""

    def call(*arguments):
        done = xd3d(*arguments, "--run", "run", "--json", XD3D_HOME=str(workspace.home))
        return done.returncode, json.loads(done.stdout.splitlines()[-1]) if not done.returncode else done.stderr

    return call


def test_the_score_says_how_it_was_adapted_and_the_run_stays_as_it_was(workspace, command):
    run = workspace.run("run")
    record = (run / "run.json").read_bytes()
    scores = {
        name: command("evaluate", *options)[1]
        for name, options in {
            "none": (),
            "norm": ("--adapt", "norm"),
            "norm-2": ("--adapt", "norm", "--window", "2"),
        }.items()
    }
    assert {name: score["protocol"]["adapt"] for name, score in scores.items()} == {name: name for name in scores}
    assert len({json.dumps(score["confusion"]) for score in scores.values()}) == 3
    assert json.loads((run / "scores/target-test.json").read_text())["confusion"] == scores["none"]["confusion"]
    assert json.loads((run / "scores/target-test-norm-2.json").read_text()) == scores["norm-2"]
    assert command("evaluate", "--adapt", "none")[1]["confusion"] == scores["none"]["confusion"]
    assert (run / "run.json").read_bytes() == record


def test_a_network_without_batch_norm_is_refused_before_a_folder_is_begun(workspace, tiny_nuscenes_root, tmp_path):
    jobs.train("default", [*SETTINGS, "model.norm=layer"], cached=True, run="layer", workspace=workspace)
    out, frames = tmp_path / "out", FrameChoice(dataset="nuscenes", scenes=("scene-0003",))
    run, adapted = workspace.run("layer"), {"out": out, "norm_window": 1}
    for command in (
        partial(predict_frames, workspace, run, frames, **adapted),
        partial(predict_frames, workspace, run, frames, **adapted, submission=True),
        partial(predict, workspace, run, tiny_nuscenes_root / "samples/LIDAR_TOP", **adapted, columns=5, picture=False),
        partial(jobs.evaluate, "layer", adapt="norm", export=out, workspace=workspace),
    ):
        with pytest.raises(RunError, match="BatchNorm"):
            command()
        assert not out.exists()


def test_a_window_without_adaptation_is_refused(command):
    code, error = command("evaluate", "--window", "16")
    assert code
    assert "--adapt norm" in error


@pytest.mark.parametrize("alone", [False, True], ids=["data set", "sweeps alone"])
def test_labels_are_adapted_frame_by_frame_in_a_folder_of_their_own(
    workspace, command, tiny_nuscenes_root, tmp_path, alone
):
    sweeps = tiny_nuscenes_root / "samples/LIDAR_TOP"
    what = (str(sweeps),) if alone else ("--dataset", "nuscenes", "--scenes", "scene-0003")

    def labels(folder, *options):
        code, done = command("predict", *what, "--out", str(tmp_path / folder), *options)
        assert code == 0, done
        facts = json.loads((tmp_path / folder / "classes.json").read_text())
        return facts, [path.read_bytes() for path in sorted((tmp_path / folder).rglob("*.label"))]

    plain, adapted = labels("plain"), labels("adapted", "--adapt", "norm")
    assert (plain[0]["adapt"], adapted[0]["adapt"]) == ("none", "norm")
    assert plain[1] != adapted[1]
    first = sorted((tmp_path / "adapted").rglob("*.label"))[0]
    first.unlink()
    assert labels("adapted", "--adapt", "norm")[1] == adapted[1], "a frame depends on no other"
    code, error = command("predict", *what, "--out", str(tmp_path / "plain"), "--adapt", "norm")
    assert code
    assert "adapt: none there, norm now" in error
    facts = tmp_path / "plain/classes.json"
    facts.write_text(json.dumps({name: value for name, value in plain[0].items() if name != "adapt"}))
    assert labels("plain")[1] == plain[1], "a folder of an earlier version is gone on with"
