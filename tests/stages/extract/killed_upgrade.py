"""A script of its own process: upgrade a cache again and again, each time killed with SIGKILL at a random moment.

``killed_upgrade.py FOLDER KILLS SEED``, where ``FOLDER/cache`` is a cache of format 1 whose agents need no pictures.
Each is followed by an upgrade to the end, whose files must equal those of an unbroken one. The last line is a JSON
summary.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm
from xd3d.cache.reader import FeatureReader
from xd3d.cache.verify import verify_cache
from xd3d.errors import UnfinishedUpgradeError
from xd3d.stages.extract.upgrade import upgrade_cache


def tree(folder):
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != "writer.lock" and f.parent.name != "locks"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def upgrade_in_child(path):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        upgrade_cache(path, index=lambda: sys.exit("no pictures are needed"))
        os._exit(0)
    return child


def state(path):
    try:
        reader = FeatureReader(path)
    except UnfinishedUpgradeError:
        return None
    reader.read([0, 1, 2])
    assert verify_cache(path)["ok"]
    return reader.layout.format


def main():
    base, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared with forked children, and one may die with it
    shutil.copytree(base / "cache", base / "unbroken")
    start = time.monotonic()
    assert os.waitpid(upgrade_in_child(base / "unbroken"), 0)[1] == 0
    whole, seconds = tree(base / "unbroken"), time.monotonic() - start
    count, states = 0, []
    while count < kills:
        path = base / f"killed-{count}"
        shutil.copytree(base / "cache", path)
        child = upgrade_in_child(path)
        time.sleep(rng.uniform(0.1, 1.0) * seconds)
        os.kill(child, signal.SIGKILL)
        count += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        states.append(state(path))
        assert os.waitpid(upgrade_in_child(path), 0)[1] == 0
        assert state(path) == 2
        assert tree(path) == whole, f"kill {count}: the result differs from an unbroken upgrade"
        shutil.rmtree(path)
    sys.stdout.write(json.dumps({"killed": count, "states": states}) + "\n")


if __name__ == "__main__":
    main()
