"""The loggers of a run, each with its real library and without a network: numbers, pictures, kills, and faults."""

import errno
import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from xd3d.errors import RunError
from xd3d.stages.train.loggers import require_loggers
from xd3d.stages.train.run_log import RunLog

LOGGERS = ("tensorboard", "wandb", "mlflow", "trackio")
INSTALLED = [name for name in LOGGERS if importlib.util.find_spec(name)]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Each logger keeps to this machine; MLflow in files, which need no tables."""
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def check(run, plan):
    """Each logger of a run after the processes of ``plan`` has its six steps, and the pictures of every second."""
    script = Path(__file__).with_name("logger_sessions.py")
    done = subprocess.run([sys.executable, script, run, plan, *INSTALLED], stdout=subprocess.PIPE, check=True)
    histories = json.loads(done.stdout.splitlines()[-1])
    assert list(histories) == INSTALLED
    for logger, (numbers, pictures) in histories.items():
        assert numbers.pop("loss") == [[step, 0.5 * step] for step in range(1, 7)], logger
        assert numbers.pop("lr") == [[step, 0.25] for step in range(1, 7)], logger
        assert numbers.pop("validation/miou/3d") == [[step, 0.125 * step] for step in (2, 4, 6)], logger
        assert list(numbers) == [f"validation/iou/car {'_parked_' if logger == 'mlflow' else '(parked)'}/3d"]
        assert pictures == {"frames/1 CAM": [2, 4, 6]}, logger


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_a_killed_run_is_one_run_in_each_logger_with_each_step_once(tmp_path):
    check(tmp_path, "0-5,2-6")


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_so_it_is_after_a_second_kill_short_of_the_first_and_with_the_tables_of_mlflow(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    check(tmp_path, "0-5,2-4,2-6")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_logger_that_is_added_later_gets_what_the_run_has_logged_before(tmp_path):
    pytest.importorskip("tensorboard")
    with RunLog(tmp_path, step=0) as records:
        for step in (1, 2, 3):
            records.write({"step": step, "loss": 0.5 * step})
    with RunLog(tmp_path, step=2, loggers=["tensorboard"]) as records:
        records.write({"step": 3, "loss": 1.5})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 0.5), (2, 1.0), (3, 1.5)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_logger_that_fails_ends_no_training(tmp_path, monkeypatch, caplog):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunLog(tmp_path, step=0, loggers=["tensorboard"]) as records, caplog.at_level(logging.WARNING):
        records.write({"step": 1, "loss": 0.5})
        monkeypatch.setattr(SummaryWriter, "add_scalar", full)
        for step in (2, 3):
            records.write({"step": step, "loss": 0.5 * step})
    (warning,) = caplog.messages
    assert "tensorboard" in warning
    assert "No space left" in warning
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_that_is_not_installed_names_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunError, match=rf"train\.loggers.*{name}.*'xd3d\[{name}\]'"):
        require_loggers([name])


@pytest.mark.filterwarnings("ignore")
def test_a_logger_that_does_not_open_is_named_before_the_first_step(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "nowhere")
    with pytest.raises(RunError, match=r"(?s)logger wandb.*nowhere.*train\.loggers"):
        RunLog(tmp_path, step=0, loggers=["wandb"])
