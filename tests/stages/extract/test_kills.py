"""Processes of an extraction that are killed with SIGKILL, in the main process and in workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_extraction.py")


@pytest.fixture
def killed(settings, make_index, tmp_path):
    """Run the script on an index of a few pictures, one of them broken."""

    def run(mode, kills, frames):
        index = make_index(frames)
        bad = index.root / str(index.images.path[3])
        bad.write_bytes(bad.read_bytes()[:100])
        index.save(tmp_path / "index")
        (tmp_path / "settings.json").write_text(settings().model_dump_json())
        (tmp_path / mode).mkdir()
        done = subprocess.run(
            [sys.executable, SCRIPT, tmp_path, mode, str(kills), "11"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=850,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.slow
def test_an_extraction_killed_at_some_moments_resumes_to_the_same_files(killed):
    assert killed("main", 4, 8)["killed"] == 4


@pytest.mark.slow
def test_workers_that_are_killed_lose_nothing(killed):
    assert killed("workers", 2, 12)["killed"] >= 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_command_that_is_stopped_takes_its_workers_with_it_and_says_how_to_go_on(killed):
    found = killed("stop", 3, 16)
    assert {name: facts["code"] for name, facts in found.items()} == {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}
    for name, facts in found.items():
        assert facts["alive"] == [], name
        assert 0 < facts["done"] < 8, name
        assert "Traceback" not in facts["said"], facts["said"]
    for name in ("SIGINT", "SIGTERM"):
        assert f"stopped by {name}" in found[name]["said"]
        assert "same command again" in found[name]["said"]
        assert found[name]["left"] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_extraction_killed_at_35_moments_resumes_to_the_same_files(killed):
    assert killed("main", 35, 8)["killed"] == 35


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_that_are_killed_at_15_moments_lose_nothing(killed):
    assert killed("workers", 15, 24)["killed"] >= 15
