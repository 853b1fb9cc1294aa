"""What a command says and how it ends when the system itself refuses."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from xd3d.pipeline.console import Outcome, conclude, run_command_line


@pytest.fixture(autouse=True)
def signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda file: Path("/dev/full").write_text("x" * 100_000), "No space left on device.*free some disk space"),
        (lambda file: (file / "below").write_text("x"), "Not a directory.*move away"),
        (lambda file: file.parent.read_text(), "Is a directory"),
        (lambda file: np.zeros(2**55), "The memory does not suffice"),
        (lambda file: torch.zeros(2**50), "The memory does not suffice"),
    ],
)
def test_a_refusal_of_the_system_is_one_line_and_exit_code_1(tmp_path, capsys, refused, words):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as ended:
        run_command_line(lambda: refused(file))
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert re.search(words, said)


def test_an_error_of_the_program_itself_is_not_taken_for_the_systems():
    def fail():
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="ours"):
        run_command_line(fail)


def test_verbose_shows_where_it_happened(capsys, caplog):
    with caplog.at_level(logging.DEBUG, "xd3d"), pytest.raises(SystemExit):
        run_command_line(lambda: Path("/nowhere/at/all").read_text())
    assert "Traceback" in caplog.text


def test_a_name_that_is_no_text_is_printed_all_the_same(capsys):
    with pytest.raises(typer.Exit):
        conclude(Outcome(result={}, text="labels of \udcff.npy"), as_json=False)
    assert capsys.readouterr().out == "labels of \\udcff.npy\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_write_to_stderr_ends_the_command_as_any_other_does(tmp_path, number):
    script = (
        "import sys\nfrom xd3d.pipeline.console import run_command_line\n"
        "run_command_line(lambda: (print('ready', flush=True), sys.stderr.write('x' * 1_000_000)))"
    )
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=buffered,
    )
    process.stdout.readline()
    wait = Path(f"/proc/{process.pid}/wchan")
    deadline = time.monotonic() + 20
    while "pipe" not in wait.read_text() and time.monotonic() < deadline:  # the pipe is full, and the write waits
        time.sleep(0.02)
    process.send_signal(number)
    time.sleep(0.2)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "stopped by" in errors
    assert "reentrant" not in errors
    assert "Traceback" not in errors
