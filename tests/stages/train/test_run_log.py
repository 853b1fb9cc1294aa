import json
from types import SimpleNamespace

import pytest
from xd3d.processes import ProcessRank
from xd3d.stages.train.run_log import RunLog, past_losses, read_log


def test_a_resumed_log_has_each_step_once(tmp_path):
    with RunLog(tmp_path, step=0) as records:
        for step in range(1, 6):
            records.write({"step": step, "loss": 1 / step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "los')  # cut short by a kill
    with RunLog(tmp_path, step=3) as records:
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
    with RunLog(tmp_path, step=5) as records:
        records.write({"step": 6})
    assert [record["step"] for record in read_log(tmp_path)] == [1, 5, 6]


def test_flushed_records_are_on_disk_while_the_run_resumes(tmp_path):
    with RunLog(tmp_path, step=0) as records:
        records.write({"step": 1})
        records.flush()
        assert read_log(tmp_path) == [{"step": 1}]


def test_a_run_without_a_log_has_no_records(tmp_path):
    assert read_log(tmp_path) == []


def test_of_several_processes_the_first_alone_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("xd3d.processes._rank", ProcessRank(rank=1, world_size=2))
    with RunLog(tmp_path, step=0, loggers=["tensorboard"]) as records:
        records.write({"step": 1, "loss": 1.0})
        records.flush()
    assert list(tmp_path.iterdir()) == []


def test_the_loggers_are_closed_where_the_disk_is_full(tmp_path):
    closed = []

    def full():
        raise OSError("No space left")

    records = RunLog(tmp_path, step=0)
    records._file.close()
    records._file = SimpleNamespace(close=full)
    records._loggers["other"] = SimpleNamespace(close=lambda failed: closed.append(failed))
    with pytest.raises(OSError, match="No space left"), records:
        pass
    assert closed == [False]
