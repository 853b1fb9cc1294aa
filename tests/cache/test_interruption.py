"""Writers that are killed, and disks that fail, at every step there is."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from xd3d.cache.reader import FeatureReader
from xd3d.cache.verify import verify_cache

HERE = Path(__file__).parent


def interrupt(folder, mode, stride, *more):
    script = [sys.executable, HERE / "interrupted_writer.py", folder, mode, str(stride), *more]
    done = subprocess.run(script, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["interrupted"]


def test_a_writer_killed_at_some_steps_resumes_to_the_same_bytes(tmp_path):
    assert interrupt(tmp_path, "kill", 5) > 25


def test_a_writer_that_shares_the_cache_killed_at_some_steps_resumes_to_the_same_bytes(tmp_path):
    assert interrupt(tmp_path, "kill", 7, "shared") > 20


@pytest.mark.parametrize("mode", ["ENOSPC", "EROFS", "EACCES"])
def test_a_disk_that_fails_at_some_steps_loses_nothing_and_the_writer_resumes(tmp_path, mode):
    assert interrupt(tmp_path, mode, 5) > 25


@pytest.mark.slow
@pytest.mark.parametrize("share", [(), ("shared",)])
@pytest.mark.parametrize("mode", ["kill", "ENOSPC", "EROFS", "EACCES"])
def test_whatever_fails_at_whatever_step_loses_nothing(tmp_path, mode, share):
    assert interrupt(tmp_path, mode, 1, *share) > 130


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import _features, _open, write_shard
with _open(Path(sys.argv[1]), image_keys=[f"k{i}" for i in range(160)]) as writer:
    print("ready", flush=True)
    for shard in writer.pending_shards():
        write_shard(writer, shard, _features(shard.rows), {})
"""


def start_writer(path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, path, HERE], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process):
    process.stdout.read()
    process.stdout.close()
    return process.wait(timeout=120)


def tree(folder):
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "writer.lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_writer_process_killed_at_random_moments_ends_as_an_unbroken_one(tmp_path):
    rng = random.Random(5)
    assert finish(start_writer(tmp_path / "unbroken")) == 0
    for _ in range(3):
        process = start_writer(tmp_path / "killed")
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        finish(process)
        assert verify_cache(tmp_path / "killed")["damaged"] == []
    assert finish(start_writer(tmp_path / "killed")) == 0
    first, second = (
        {
            str(f.relative_to(folder)): f.read_bytes()
            for f in folder.rglob("*")
            if f.is_file() and f.name != "writer.lock"
        }
        for folder in (tmp_path / "unbroken", tmp_path / "killed")
    )
    assert first == second
    assert FeatureReader(tmp_path / "killed").available.all()


def test_a_disk_that_is_really_full_or_read_only_is_named_and_what_was_committed_stays(tmp_path):
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    probe = [*unshare, "mount", "-t", "tmpfs", "tmpfs", tmp_path]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a test mount a small file system")
    script = [*unshare, sys.executable, HERE / "full_disk.py", tmp_path]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert "No room left" in told["full"]
    assert "run the same command again" in told["full"]
    assert 0 < told["kept"] < 600
    assert told["sound"]
    assert "Read-only file system" in told["readonly"]
    assert told["turns"] > 20
    assert told["done"] == 600
    assert told["ok"]
