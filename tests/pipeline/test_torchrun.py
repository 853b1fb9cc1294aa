"""``torchrun`` around the command line: one voice, one run folder, and an end within a minute when a process dies.

What only looks like it, because a launcher left its variables, silences nobody.
"""

import json
import os
import re
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


@pytest.mark.parametrize("rank", ["0", "1", "first"])
def test_variables_of_a_launcher_silence_no_command(xd3d, tiny_nuscenes_root, rank):
    left = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1,1"}
    done = xd3d("prepare", "--root", str(tiny_nuscenes_root), "--json", **left)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 18
    assert "checking files" in done.stderr
    done = xd3d("train", "--set", "fusion.variant=3d-only", **left)
    assert done.returncode == 1
    assert "torchrun" in done.stderr
    assert "unset RANK and WORLD_SIZE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "way"),
    [("extract-features", "--workers N.*--shard I/N"), ("evaluate", "start it by itself: xd3d evaluate")],
)
def test_torchrun_around_the_work_of_one_process_is_refused_with_the_way_to_do_it(xd3d, command, way):
    done = xd3d(command, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", TORCHELASTIC_RUN_ID="none")
    assert done.returncode == 2
    assert re.search(f"torchrun started 2 processes of 'xd3d {command}'.*{way}", done.stderr)


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
def test_torchrun_around_stage_one_says_how_it_is_shared_out(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "XD3D_HOME": str(tmp_path / "xd3d-work"), "OMP_NUM_THREADS": "1"}
    command = [*launcher, "-m", "xd3d", "extract-features"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "--workers N" in done.stderr
    assert not (tmp_path / "xd3d-work" / "cache").exists()


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
