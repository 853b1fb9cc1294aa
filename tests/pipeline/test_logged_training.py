"""``train.loggers`` at the command line: numbers and pictures of validation frames, and a missing package."""

import json
import sys

import pytest
from xd3d.pipeline import jobs
from xd3d.pipeline.workspace import Workspace

TRAIN = (
    *("train", "--json", "--set", "fusion.variant=3d-only", "--set", "model.preset=slim", "--set", "train.workers=0"),
    *(
        "--set",
        "model.voxel_size=0.5",
        "--set",
        "train.batch_size=1",
        "--set",
        "train.steps=2",
        "--set",
        "train.validate_every=1",
    ),
)


@pytest.fixture(scope="module")
def home(tiny_nuscenes_root, tmp_path_factory):
    home = tmp_path_factory.mktemp("logged") / "work"
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=Workspace(home=home))
    return home


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_numbers_and_validation_frames(xd3d, home):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = xd3d(*TRAIN, "--set", "train.loggers=[tensorboard]", XD3D_HOME=str(home))
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(f"{json.loads(done.stdout)['run']}/tensorboard", size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.step for event in events.Scalars("validation/miou/3d")] == [1, 2]
    assert sorted(events.Tags()["images"]) == [f"frames/{number} CAM_FRONT" for number in (1, 2)]
    for tag in events.Tags()["images"]:
        found = events.Images(tag)
        assert [event.step for event in found] == [1, 2]
        assert (found[0].width, found[0].height) > (1000, 300)
        assert found[0].encoded_image_string != found[1].encoded_image_string, "the prediction has changed"


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_missing_package_is_named_before_anything_is_written(xd3d, home, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = xd3d(command, *TRAIN[1:], "--run", "missing", "--set", "train.loggers=[mlflow]", XD3D_HOME=str(home))
    assert done.returncode == 1
    assert "pip install 'xd3d[mlflow]'" in done.stderr
    assert not (home / "runs/missing").exists()


def test_an_unknown_logger_is_told_the_known_ones(xd3d, home):
    done = xd3d(*TRAIN, "--set", "train.loggers=[tensorbord]", XD3D_HOME=str(home))
    assert done.returncode == 2
    for name in ("train.loggers", "tensorboard", "wandb", "mlflow", "trackio"):
        assert name in done.stderr
