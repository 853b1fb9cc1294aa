"""The script behind docs/training.md: it ends with one JSON object that has every ratio by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "train.py"
SMALL = (
    "--size",
    "64",
    "96",
    "--preset",
    "slim",
    "--points",
    "1500",
    "--steps",
    "3",
    "--repeat",
    "1",
    "--threads",
    "1",
)


@pytest.mark.slow
def test_every_figure_of_the_docs_is_there():
    done = subprocess.run([sys.executable, SCRIPT, *SMALL], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    for name in (
        "ratio_online_to_cached",
        "ratio_spconv_to_torch",
        "ratio_full_to_lidar_only",
        "ratio_depth_to_full",
        "ratio_most_to_least_tokens",
    ):
        assert facts[name] > 0, name
    assert 0 <= facts["waiting_cached"] < 1
    assert facts["points"] == [375, 750, 1500]
    assert len(facts["cpu_seconds_by_tokens"]) == len(facts["tokens"]) == 3
    assert 1e8 < facts["peak_bytes"]["3d-only"] < facts["peak_bytes"]["full"] < 4e9


@pytest.mark.slow
def test_the_full_3d_network_trains_on_two_frames_of_35000_points_in_four_gigabytes():
    command = [sys.executable, SCRIPT, "--memory-of", "3d-only", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["peak_bytes"] < 4e9
