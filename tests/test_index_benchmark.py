"""The benchmark of the index: a small share of the real counts, and all of nuScenes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "index.py"


def run(work, *options, timeout):
    command = [sys.executable, SCRIPT, "--work", work, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
    return json.loads(done.stdout.splitlines()[-1])["datasets"]


@pytest.mark.slow
def test_a_small_share_has_the_counts_it_should(tmp_path):
    told = run(tmp_path, "--share", "0.001", "--dataset", "nuscenes", "--cameras", "all", timeout=100)["nuscenes"]
    assert (told["frames"], told["images"]) == (34, 204)
    assert told["index_mb"] > 0
    assert told["peak_mib"] > 0


@pytest.mark.slow
def test_trainval_is_prepared_in_four_gigabytes_and_five_minutes_and_opened_in_a_second(tmp_path):
    told = run(tmp_path, "--dataset", "nuscenes", timeout=1500)["nuscenes"]
    assert told["frames"] == 34_149
    assert told["peak_mib"] < 4000
    assert told["seconds"] < 300
    assert told["open_seconds"] < 1


@pytest.mark.slow
def test_the_other_large_data_sets_are_indexed_too(tmp_path):
    told = run(tmp_path, "--dataset", "semantickitti", "--dataset", "a2d2", timeout=900)
    assert {name: facts["frames"] for name, facts in told.items()} == {"semantickitti": 43_552, "a2d2": 27_695}
    assert max(facts["open_seconds"] for facts in told.values()) < 1
