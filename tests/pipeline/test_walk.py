"""The three bare commands on a synthetic root: they work in an empty folder, and a kill changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from safetensors.numpy import load_file

QUICK = ("--set", "train.steps=8", "--set", "train.checkpoint_every=2", "--set", "train.validate_every=4")
FEW = ("--set", "extract.taps=[up1]", "--set", "extract.image_size=[64,112]")


@pytest.fixture
def prepared(xd3d, city):
    done = xd3d("prepare", "--dataset", "nuscenes", "--root", str(city), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (facts["frames"], facts["images"], facts["missing"]) == (22, 22, [])


def walk(xd3d) -> dict:
    """The three commands in order; the facts of each."""
    facts = {}
    for name, command in {
        "extract": ("extract-features", "--dataset", "nuscenes"),
        "train": ("train", "--cached", *QUICK),
        "evaluate": ("evaluate",),
    }.items():
        done = xd3d(*command, "--json")
        assert done.returncode == 0, done.stderr
        facts[name] = json.loads(done.stdout.splitlines()[-1])
    return facts


def kill_when(folder: Path, ready, *command: str) -> None:
    """Start ``xd3d COMMAND`` in ``folder`` and kill it with SIGKILL as soon as ``ready()`` holds."""
    environment = {**os.environ, "XD3D_HOME": str(folder / "xd3d-work"), "HF_HUB_OFFLINE": "1"}
    code = "from xd3d.pipeline.cli import main; main()"
    with (folder / "killed.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", code, *command], cwd=folder, env=environment, stderr=log)
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, (folder / "killed.log").read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def arrays_of(cache: str) -> dict[str, np.ndarray]:
    group = zarr.open_group(cache, mode="r")
    return {name: array[:] for room in ("features", "agents") for name, array in group[room].arrays()}


@pytest.mark.slow
def test_the_three_bare_commands_equal_themselves_after_kills(xd3d, prepared, tmp_path):
    unbroken = walk(xd3d)
    assert unbroken["extract"]["done"] == 22
    assert unbroken["train"]["steps"] == 8
    assert set(unbroken["evaluate"]["miou"]) == {"2d", "3d", "xm", "fused"}
    assert unbroken["evaluate"]["points"] > 1000
    first = tmp_path / "xd3d-work"
    first.rename(tmp_path / "unbroken")
    (first / "index").mkdir(parents=True)
    (tmp_path / "unbroken" / "index" / "nuscenes").rename(first / "index" / "nuscenes")

    cache = Path(unbroken["extract"]["cache"])
    extract = ("extract-features", "--dataset", "nuscenes")
    kill_when(tmp_path, lambda: any(cache.glob("staging/*")) or any(cache.glob("features/*/c/*")), *extract)
    kill_when(tmp_path, lambda: b"image" in (tmp_path / "killed.log").read_bytes(), *extract)
    log = Path(unbroken["train"]["run"]) / "log.jsonl"
    xd3d(*extract)
    kill_when(tmp_path, lambda: log.exists() and len(log.read_bytes().splitlines()) >= 3, "train", "--cached", *QUICK)
    resumed = walk(xd3d)

    assert resumed["evaluate"]["miou"] == unbroken["evaluate"]["miou"]
    assert resumed["evaluate"]["iou"] == unbroken["evaluate"]["iou"]
    assert resumed["extract"]["fingerprint"] == unbroken["extract"]["fingerprint"]
    before = arrays_of(str(tmp_path / "unbroken" / cache.relative_to(first)))
    for name, values in arrays_of(str(cache)).items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)
    assert_same_weights(Path(resumed["train"]["run"]), tmp_path / "unbroken" / "runs")


def assert_same_weights(run: Path, runs: Path) -> None:
    files = sorted(path.relative_to(run) for path in run.rglob("*.safetensors"))
    assert files
    for file in files:
        before = load_file(runs / run.name / file)
        for name, values in load_file(run / file).items():
            np.testing.assert_array_equal(values, before[name], err_msg=f"{file}: {name}")


def test_training_refuses_a_cache_of_another_fingerprint_and_names_the_field(xd3d, prepared):
    assert xd3d("extract-features", *FEW, "--set", "extract.agents.rounds=1").returncode == 0
    done = xd3d("train", "--cached", *FEW, "--set", "extract.agents.rounds=2")
    assert done.returncode == 1
    assert "agents.rounds" in done.stderr
    assert "image_size" not in done.stderr
    assert "Traceback" not in done.stderr


def test_each_command_says_what_is_missing_before_it(xd3d, city):
    for command, remedy in {
        ("extract-features", "--root", str(city)): "xd3d prepare",
        ("train", "--cached"): "--root",
        ("evaluate",): "xd3d train --cached",
        ("report",): "xd3d train --cached",
    }.items():
        done = xd3d(*command)
        assert done.returncode == 1, command
        assert remedy in done.stderr
        assert "Traceback" not in done.stderr
    assert xd3d("prepare", "--root", str(city)).returncode == 0
    done = xd3d("train", "--cached")
    assert "xd3d extract-features" in done.stderr


def test_the_dry_run_forecasts_the_bytes_that_extraction_then_stores(xd3d, prepared):
    forecast = json.loads(xd3d("extract-features", "--dry-run", *FEW, "--json").stdout.splitlines()[-1])
    done = json.loads(xd3d("extract-features", *FEW, "--json").stdout.splitlines()[-1])
    info = json.loads(xd3d("cache", "info", done["cache"], "--json").stdout.splitlines()[-1])
    assert forecast["bytes"] == info["bytes"]
    assert forecast["images"] == info["images"] == info["done"] == 22
    verified = xd3d("cache", "verify", done["cache"], "--json")
    assert json.loads(verified.stdout.splitlines()[-1]) == {"ok": True, "images": 22, "checked": 22, "damaged": []}
