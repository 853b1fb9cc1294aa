"""What a command says and how it ends when the system itself refuses."""

import logging
import re
import signal
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
        (lambda file: Path("/dev/full").write_text("x" * 100_000), "No space left on device.*free some room"),
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
