"""The script behind docs/planning.md: its bytes are those of a real cache, its hours follow from what it is told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from xd3d.stages.extract.models import resolve_model

SCRIPT = Path(__file__).parent / "benchmarks" / "planning.py"


@pytest.mark.slow
def test_bytes_hours_and_cost_follow_from_the_model_and_the_rates_it_is_given():
    rates = ["--gpu", "card=2:3", "--gpu", "fast=1e6:1", "--disk=0.5", "--cores=4"]
    command = [sys.executable, SCRIPT, "--model", resolve_model("tiny-street").path, *rates]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    six = next(row for row in told["rows"] if row["images"] == 204_894 and row["image_size"] == [225, 400])
    size = next(size for size in told["sizes"] if size["image_size"] == [225, 400])
    per_image = size["bytes_per_image"]["exact"]
    assert 0 < six["bytes"]["exact"] / (six["images"] * per_image) - 1 < 0.001  # the shard indexes
    decode, write = six["decode_milliseconds"]["full"], six["bytes"]["exact"] / 0.5e9 / 3600
    assert six["device_hours"]["card"] == pytest.approx(204_894 * size["tflop"] / 2 / 3600)
    assert six["host_hours"] == pytest.approx({"decode": 204_894 * decode / 1e3 / 4 / 3600, "write": write})
    for card, price in (("card", 3), ("fast", 1)):
        assert six["hours"][card] == max(six["device_hours"][card], *six["host_hours"].values())
        assert six["cost"][card] == pytest.approx(price * six["hours"][card])
    assert six["slowest"]["fast"] != "device"
    assert six["decode_milliseconds"]["scaled"] < decode
    assert size["tflop"] == pytest.approx(size["tflop_vae"] + size["tflop_unet"])
