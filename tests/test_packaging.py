"""The wheel holds what the code reads and nothing else and runs in an empty environment; workflows run real targets."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CODE = ("cache", "configs", "pipeline", "stages")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel, from a copy of the source without anything built."""
    source = tmp_path_factory.mktemp("source") / "clone"
    source.mkdir()
    for part in CODE:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"):
        shutil.copy(path, source)
    out = source.parent / "dist"
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_packages_and_no_test(wheel):
    held = {name.removeprefix("xd3d/") for name in zipfile.ZipFile(wheel).namelist() if name.startswith("xd3d/")}
    files = {path for part in CODE for path in (ROOT / part).rglob("*") if path.is_file()} | set(ROOT.glob("*.py"))
    assert held == {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_runs_the_demo_in_an_empty_environment(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    install = [tmp_path / "env/bin/pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel]
    if subprocess.run(install, check=False).returncode:
        pytest.skip("the package index cannot be reached")
    done = subprocess.run([tmp_path / "env/bin/xd3d", "demo", "--fast"], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert (tmp_path / "xd3d-demo/report.html").exists()


def test_the_workflow_and_the_image_run_what_there_is():
    steps = [
        step["run"]
        for job in yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"make lint", "make test", "make docs", "make wheel"} <= set(steps)
    assert {step.split()[1] for step in steps if step.startswith("make ")} <= targets
    stages = re.findall(r"^FROM \S+ AS (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {"cpu", "cuda"} <= set(stages)
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_commands_of_the_image_are_sound_and_a_build_without_an_index_is_told_so(tmp_path):
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    commands = re.findall(r"^RUN (.+)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0
        for part in re.findall(r"\$\{\w+:\?([^}]*)\}", command):
            assert "'" not in part, "linters and some shells take it for a quote"
    done = subprocess.run(
        ["/bin/sh", "-c", commands[0]], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "TORCH_INDEX" in done.stderr
