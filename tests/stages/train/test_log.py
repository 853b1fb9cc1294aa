import importlib.util
import json

import pytest
from xd3d.errors import RunError
from xd3d.processes import ProcessRank
from xd3d.stages.train.log import RunLog, open_trackers, past_losses, read_log


def test_a_resumed_log_has_each_step_once(tmp_path):
    with RunLog(tmp_path, step=0, tensorboard=False) as records:
        for step in range(1, 6):
            records.write({"step": step, "loss": 1 / step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "los')  # cut short by a kill
    with RunLog(tmp_path, step=3, tensorboard=False) as records:
        for step in (4, 5):
            records.write({"step": step, "loss": 0.5})
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3, 4, 5]
    assert read_log(tmp_path)[-1]["loss"] == 0.5
    assert all(json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())


def test_a_damaged_line_takes_no_other_with_it(tmp_path):
    lines = [
        b'{"step": 1, "loss": 1.0}',
        b'{"step": 2, "lo',
        b"\0\0\xff",
        b"[3]",
        b'{"loss": 4}',
        b'{"step": 5, "loss": 5.0}',
    ]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert [record["step"] for record in read_log(tmp_path)] == [1, 5]
    assert past_losses(tmp_path, 5) == [1, 5]
    with RunLog(tmp_path, step=5, tensorboard=False) as records:
        records.write({"step": 6})
    assert [record["step"] for record in read_log(tmp_path)] == [1, 5, 6]


def test_flushed_records_are_on_disk_while_the_run_resumes(tmp_path):
    with RunLog(tmp_path, step=0, tensorboard=False) as records:
        records.write({"step": 1})
        records.flush()
        assert read_log(tmp_path) == [{"step": 1}]


def test_a_run_without_a_log_has_no_records(tmp_path):
    assert read_log(tmp_path) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, step=0, tensorboard=True) as records:
        for step in (1, 2):
            records.write({"step": step, "loss": 0.5 * step, "validation": {"miou": {"3d": 0.25}, "none": None}})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "validation/miou/3d"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 1.0)]


def test_of_several_processes_the_first_alone_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("xd3d.processes._rank", ProcessRank(rank=1, world_size=2))
    with RunLog(tmp_path, step=0, tensorboard=True) as records:
        records.write({"step": 1, "loss": 1.0})
        records.flush()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "extra"), [("torch.utils.tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_board_that_is_not_installed_names_its_extra(tmp_path, monkeypatch, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    wanted = {"tensorboard": False, "wandb": False, extra: True}
    with pytest.raises(RunError, match=rf"train\.{extra}.*'xd3d\[{extra}\]'"):
        open_trackers(tmp_path, step=0, **wanted)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_works_offline_and_keeps_its_identity(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        (board,) = open_trackers(tmp_path, step=step - 1, tensorboard=False, wandb=True)
        board.write(step, {"loss": 1 / step})
        board.close()
    (identity,) = {path.name.split("-")[-1] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert identity == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 2
