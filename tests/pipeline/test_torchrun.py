"""``torchrun`` around the command line: one voice, one run folder, and an end within a minute when a process dies."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

LIDAR_ONLY = ("fusion.variant=3d-only", "train.batch_size=1", "train.device=cpu", "train.checkpoint_every=1")
COMMAND = [sys.executable, "-c", "from xd3d.pipeline.cli import main; main()", "train", "--json"]


def start(home, steps):
    settings = [part for setting in (*LIDAR_ONLY, f"train.steps={steps}") for part in ("--set", setting)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--no-python"]
    environment = {**os.environ, "XD3D_HOME": str(home / "xd3d-work"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, *COMMAND, *settings], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def prepared(xd3d, tiny_nuscenes_root):
    done = xd3d("prepare", "--dataset", "nuscenes", "--root", str(tiny_nuscenes_root))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
def test_the_first_process_speaks_for_all(tmp_path):
    printed, errors = start(tmp_path, 2).communicate(timeout=250)
    assert len(printed.splitlines()) == 1, errors
    assert json.loads(printed)["steps"] == 2
    assert errors.count("points/s") == 1
    (run,) = (tmp_path / "xd3d-work" / "runs").glob("*/run.json")
    assert json.loads(run.read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
def test_a_dead_process_ends_the_others_within_a_minute(tmp_path):
    launched = start(tmp_path, 10_000)
    runs = tmp_path / "xd3d-work" / "runs"
    while not list(runs.glob("*/checkpoints/step-00000002")):
        assert launched.poll() is None, launched.communicate()
        time.sleep(0.05)
    children = subprocess.check_output(["ps", "--ppid", str(launched.pid), "-o", "pid="], text=True).split()
    os.kill(int(children[1]), signal.SIGKILL)
    begin = time.monotonic()
    _, errors = launched.communicate(timeout=120)
    assert time.monotonic() - begin < 60
    assert launched.returncode != 0
    assert "lost another process of this run" in errors or "stopped by SIGTERM" in errors
