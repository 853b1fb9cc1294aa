"""``xd3d models`` lists what there is, fetches from a hub, resumes after a kill, and stays offline when asked to."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

MB = 1_000_000
FILE = "weights.safetensors"


@pytest.fixture
def hub(tmp_path):
    """A hub on this machine with one file of 24 MB, and the environment that makes the client use it."""
    place = Path(__file__).parents[1] / "stages/extract/fake_hub.py"
    spec = importlib.util.spec_from_file_location("fake_hub", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.serving() as running:
        content = np.random.default_rng(0).bytes(24 * MB)
        running.repositories["some/unet"] = {FILE: content}
        running.environment = {
            "HF_ENDPOINT": running.address,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
            "XDG_CACHE_HOME": str(tmp_path / "home"),
        }
        yield running


def test_every_model_with_a_name_is_listed_with_its_place(xd3d, tmp_path):
    done = xd3d("models", "list", "--json", HF_HUB_CACHE=str(tmp_path / "hub"))
    models = {model["name"]: model for model in json.loads(done.stdout.splitlines()[-1])["models"]}
    assert models["tiny-street"]["here"]
    assert models["tiny-street"]["bytes"] > MB
    assert (models["sd21-base"]["here"], models["sd21-base"]["bytes"]) == (False, 5_159_966_792)
    wanted = {f"dinov2-{size}{kind}" for size in ("small", "base", "large") for kind in ("", "-registers")}
    assert wanted | {"dinov3-base", "clip-vit-l14", "siglip2-base"} <= models.keys()
    assert [name for name, model in models.items() if model["gated"]] == [name for name in models if "dinov3" in name]
    assert models["cleandift-sd21"]["source"] == "CompVis/cleandift:cleandift_sd21_unet.safetensors"


def test_a_model_that_is_not_there_offline_is_refused_with_the_way_to_get_it(xd3d, tmp_path):
    done = xd3d("models", "fetch", "sd15", "--offline", HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="0")
    assert done.returncode == 1
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in done.stderr
    assert "xd3d models fetch" in done.stderr
    assert "did you mean 'sd21-base'" in xd3d("models", "fetch", "sd21base").stderr


@pytest.mark.slow
def test_a_fetch_that_is_killed_resumes(xd3d_process, hub, tmp_path):
    name = f"some/unet:{FILE}"
    hub.hold[FILE] = 22 * MB
    command = [sys.executable, "-c", "from xd3d.pipeline.cli import main; main()", "models", "fetch", name]
    process = subprocess.Popen(command, env={**os.environ, **hub.environment}, stderr=subprocess.DEVNULL)
    partial = tmp_path / "hub/models--some--unet/blobs"
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 10 * MB for path in partial.glob("*xd3d-partial")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.hold.clear()
    done = xd3d_process("models", "fetch", name, "--json", **hub.environment)
    assert done.returncode == 0, done.stderr
    first, second = hub.sent(FILE)
    assert first == 0
    assert second > 10 * MB
    facts = json.loads(done.stdout.splitlines()[-1])
    assert Path(facts["path"]).read_bytes() == hub.repositories["some/unet"][FILE]
    assert [(file["bytes"], file["checked"]) for file in facts["files"]] == [(24 * MB, "hub")]
