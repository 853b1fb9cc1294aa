"""The script behind ``make gpu-check``, on the CPU: its facts, its exit codes, and that a failure stays alone."""

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu_check.py"
PRECISIONS = ("float32", "bfloat16", "float16")


def run(tmp_path, *arguments):
    out = tmp_path / "facts.json"
    command = [sys.executable, SCRIPT, "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(out.read_text()) == facts
    return done, facts


def test_without_a_gpu_it_says_so_and_ends_well(tmp_path):
    done, facts = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("There is no GPU here (")
    assert facts["ok"]
    assert facts["checks"] == {}


@pytest.mark.slow
def test_one_failing_check_leaves_the_others_running(tmp_path):
    only = ("environment", "stage_one", "backends", "stage_one_speed")
    done, facts = run(tmp_path, "--device", "cpu", "--model", str(tmp_path / "gone"), "--only", *only)
    assert done.returncode == 1, done.stderr
    assert not facts["ok"]
    assert list(facts["checks"]) == ["data", *only]
    _, environment, stage_one, backends, failed = facts["checks"].values()
    assert failed["status"] == "failed"
    assert "ModelError" in failed["reason"]
    assert "gone" in failed["reason"]
    assert environment["status"] == stage_one["status"] == "ok"
    assert environment["torch"]
    for precision in PRECISIONS:
        assert set(stage_one[precision]) == {"up0", "up1", "up2", "up3"}
        assert all(0.99 < each["least"] <= each["mean"] < 1.0001 for each in stage_one[precision].values())
    if backends["status"] == "ok":
        assert backends["spconv float32"]["layers"].keys() == {"stem", "submanifold", "wide", "down and up"}
        assert 0 < backends["spconv float32"]["forward"] < 1e-4
    else:
        assert "spconv" in backends["reason"]
    rows = [row.split()[:2] for row in done.stdout.splitlines()[:-1]]
    assert rows == [[name, found["status"]] for name, found in facts["checks"].items()]


@pytest.fixture
def script(monkeypatch):
    """The modules ``gpu_check`` and ``gpu_bench``."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    yield import_module("gpu_check"), import_module("gpu_bench")
    for name in ("gpu_check", "gpu_bench"):
        sys.modules.pop(name)


@pytest.mark.slow
def test_a_check_that_does_not_end_is_stopped_and_one_that_ends_without_a_word_is_reported(script, tmp_path):
    gpu_check, gpu_bench = script
    bench = gpu_bench.Bench(folder=tmp_path, device="cpu", scale=gpu_bench.REDUCED)
    stopped = gpu_check.check("environment", bench, time.monotonic() + 0.2)
    assert stopped["status"] == "failed"
    assert "not done when the time was over" in stopped["reason"]
    assert "not begun" in gpu_check.check("environment", bench, time.monotonic())["reason"]
    nowhere = gpu_bench.Bench(folder=tmp_path / "gone", device="cpu", scale=gpu_bench.REDUCED)
    silent = gpu_check.check("environment", nowhere, time.monotonic() + 100)
    assert silent["status"] == "failed"
    assert silent["reason"].startswith("ended with code 1: ")
    assert gpu_check.code(-8) == "SIGFPE"


def test_the_full_size_model_has_the_shape_of_the_published_one(script, real_sd_configs, tmp_path):
    _, gpu_bench = script
    folder = gpu_bench.published_model(tmp_path / "model")
    for part in ("unet", "vae"):
        ours = json.loads((folder / part / "config.json").read_text())
        theirs = json.loads((real_sd_configs / "sd21-base" / part / "config.json").read_text())
        assert {key: theirs.get(key, value) for key, value in ours.items()} == ours


@pytest.mark.slow
def test_every_check_works_on_the_cpu(tmp_path):
    done, facts = run(tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stdout
    assert facts["ok"]
    checks = facts["checks"]
    assert {name for name, found in checks.items() if found["status"] != "ok"} <= {"backends"}
    assert len(done.stdout.splitlines()) == len(checks) + 1
    for name in ("cached_online", "kill_resume"):
        assert checks[name]["equal"], name
    assert 0 < checks["kill_resume"]["killed_at_step"] < checks["kill_resume"]["steps"]
    assert checks["two_processes"]["first_difference"] < 1e-5
    for precision in PRECISIONS:
        assert checks["stage_two"][precision][0] == pytest.approx(checks["stage_two"]["cpu float32"][0], rel=1e-3)
    speed = checks["stage_one_speed"]
    assert speed["tflops"] == pytest.approx(speed["tflop_an_image"] * speed["images_per_second"])
    assert speed["share_of_peak"] == pytest.approx(speed["tflops"] / speed["peak_tflops"])
    steps = checks["stage_two_speed"]["float32"]
    assert 1e8 < steps["3d-only"]["peak_bytes"] < 1e10
    assert steps["full"]["milliseconds"] > 0
    assert checks["traffic"]["copies_a_step"]["aten::copy_"] > 0
    assert set(checks["stage_one_job"]["shares"]) == {"model", "agents", "decoding", "writing"}
