"""A push and a pull that are killed resume with what was not transferred."""

import os
import signal
import subprocess
import sys

import pytest
from hub_server import TOKEN
from xd3d.cache.maintenance import diff_caches

URL = "hf://datasets/owner/features"
SCRIPT = """
import sys
from xd3d.pipeline.cli import main
from xd3d.pipeline.transfer import copy
copy.BATCH_FILES = copy.THREADS = 3
main()
"""


@pytest.fixture
def command(hub, tmp_path):
    """Start ``xd3d`` in a process of its own, in a workspace."""

    def start(workspace, *arguments):
        environment = {
            **os.environ,
            "XD3D_HOME": str(workspace.home),
            "HF_ENDPOINT": hub.address,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments], env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )

    return start


def kill_when_held(hub, process):
    assert hub.holding.wait(60), process.poll()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.hold_after = None
    hub.closing.set()  # what is held ends
    hub.closing.clear()
    hub.holding.clear()


def finish(process):
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


@pytest.mark.slow
def test_a_killed_push_and_a_killed_pull_resume(write_cache, hub, mine, yours, command):
    cache = write_cache(mine)
    push = (mine, "push", str(cache), URL, "--confirm-licence")
    hub.hold_after = 10
    kill_when_held(hub, command(*push))
    assert len(hub.uploads) == 10
    finish(command(*push))
    assert len(hub.uploads) == len(set(hub.uploads)) > 20
    hub.downloads.clear()
    hub.hold_after = 10
    kill_when_held(hub, command(yours, "pull", URL))
    local = yours.home / "cache" / cache.name
    assert not (local / "zarr.json").exists()
    assert (local / "xd3d-share.partial.json").exists()
    before = [name for name in hub.downloads if "/c/" in name]
    finish(command(yours, "pull", URL))
    again = [name for name in hub.downloads if "/c/" in name][len(before) :]
    assert len(set(again) & set(before)) <= 3  # those of the batch that was held
    assert diff_caches(cache, local)["equal"]
    assert not list(local.rglob("*partial*"))
