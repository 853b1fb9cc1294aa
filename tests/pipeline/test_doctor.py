"""The doctor: it finds what is here, and every fault comes with its remedy."""

import json
import os
import pty
import subprocess
import sys

import pytest
from click import unstyle
from xd3d.pipeline.doctor import examine
from xd3d.pipeline.workspace import Workspace


def findings_of(done):
    facts = json.loads(done.stdout.splitlines()[-1])
    return {finding["name"]: finding for finding in facts["findings"]}


def test_a_healthy_machine_has_no_fault_and_names_backend_and_model(xd3d, tmp_path):
    done = xd3d("doctor", "--json", XD3D_HOME=str(tmp_path / "work"))
    assert done.returncode == 0, done.stdout + done.stderr
    findings = findings_of(done)
    assert findings["torch"]["status"] == "ok"
    assert findings["sparse backend"]["detail"]
    spconv = findings["spconv"]
    assert "spconv-cu" in spconv["detail"]
    assert spconv["status"] == "note" or "compiled for GPUs of compute capability" in spconv["detail"]
    assert findings["model tiny-street"]["status"] == "ok"
    assert all(finding["remedy"] for finding in findings.values() if finding["status"] != "ok")


def test_a_data_root_that_is_gone_is_a_fault_with_its_remedy(xd3d, tmp_path):
    Workspace(home=tmp_path / "work").remember_root("nuscenes", tmp_path / "gone")
    done = xd3d("doctor", "--json", XD3D_HOME=str(tmp_path / "work"))
    assert done.returncode == 1
    finding = findings_of(done)["nuscenes root"]
    assert finding["status"] == "fault"
    assert "xd3d prepare" in finding["remedy"]


def test_a_workspace_below_a_file_is_a_fault(xd3d, tmp_path):
    (tmp_path / "file").touch()
    done = xd3d("doctor", "--json", XD3D_HOME=str(tmp_path / "file/work"))
    assert findings_of(done)["workspace"]["status"] == "fault"
    assert "XD3D_HOME" in findings_of(done)["workspace"]["remedy"]


def test_the_text_begins_with_faults_and_warnings_and_folds_what_is_not_set_up(xd3d, tmp_path):
    Workspace(home=tmp_path / "work").remember_root("nuscenes", tmp_path / "gone")
    done = xd3d("doctor", XD3D_HOME=str(tmp_path / "work"))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].split() == f"FAULT nuscenes root: {tmp_path / 'gone'} is not there".split()
    assert "xd3d prepare --dataset nuscenes" in lines[1]
    assert lines[2].split()[:2] == ["warning", "cuda:"]
    kinds = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert kinds == sorted(kinds, key=["FAULT", "warning", "ok", "Not", "1"].index)
    assert kinds.count("Not") == 1
    folded = lines[-2]
    assert all(command in folded for command in ("xd3d prepare --dataset NAME", "xd3d models fetch NAME"))
    assert "6 data sets" in folded
    assert lines[-1].startswith("1 fault")
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(("no_colour", "coloured"), [("", True), ("1", False)])
def test_a_terminal_gets_colours_unless_it_wants_none(tmp_path, no_colour, coloured):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "XD3D_HOME": str(tmp_path), "NO_COLOR": no_colour, "TERM": "xterm"}
    show = "from xd3d.pipeline.console import has_colours; print(has_colours())"
    done = subprocess.run([sys.executable, "-c", show], env=environment, stdout=theirs, check=False)
    assert done.returncode == 0
    assert os.read(ours, 100).split() == [str(coloured).encode()]
    os.close(ours)
    os.close(theirs)


def test_colours_add_nothing_but_codes(monkeypatch, tmp_path):
    monkeypatch.setenv("XD3D_HOME", str(tmp_path))
    plain, coloured = examine().text, examine(colour=True).text
    assert "\x1b[" in coloured
    assert unstyle(coloured) == plain
