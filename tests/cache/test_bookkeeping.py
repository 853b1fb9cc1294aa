"""A cache of as many images as nuScenes has is opened, resumed and looked through in seconds and in flat memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bookkeeping.py"


def run(folder, images):
    command = [sys.executable, SCRIPT, folder, f"--images={images}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["steps"]


def check(steps, images, seconds):
    assert steps["resume"]["found"] == 10
    assert steps["info"]["found"] == steps["verify"]["found"] == steps["quick verify"]["found"] == images
    for name in ("resume", "open", "info", "quick verify", "verify"):
        assert steps[name]["cpu_seconds"] < seconds, name
    assert max(told["peak_mib"] for told in steps.values()) < 120 + images / 1000  # a kilobyte an image, keys and all


@pytest.mark.slow
def test_two_hundred_thousand_images_are_looked_through_in_seconds(tmp_path):
    images = 204_894
    check(run(tmp_path, images), images, seconds=30)
