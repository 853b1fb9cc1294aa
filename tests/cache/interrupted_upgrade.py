"""A script of its own process: upgrade the small cache again and again, each time killed with SIGKILL at another step.

``interrupted_upgrade.py FOLDER STRIDE``. A step is anything that is done to the disk, as ``interrupted_writer`` counts
them. After each kill the cache must read as one of format 1, as one of format 2, or refuse everybody with the command
that finishes it; the same upgrade must then lead to the files of an unbroken one. The last line is a JSON summary.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
from conftest import TAPS, _features, _open, _with_memberships, write_shard
from interrupted_writer import KEYS, Steps, tree
from xd3d.cache.reader import FeatureReader
from xd3d.cache.upgrade import CacheUpgrade, finish_upgrade
from xd3d.cache.verify import verify_cache
from xd3d.errors import UnfinishedUpgradeError


def write(path, memberships):
    """The small cache without its second shard; row 1 has failed."""
    with _open(path, image_keys=KEYS, grid=TAPS[0] if memberships else None, shard_bytes=700) as writer:
        for shard in writer.pending_shards():
            if shard.index != 1:
                features = _features(shard.rows)
                failures = {1: "dark"} if shard.index == 0 else {}
                write_shard(writer, shard, _with_memberships(features) if memberships else features, failures)


def upgrade(path):
    if finish_upgrade(path):
        return
    with CacheUpgrade.open(path, grid=TAPS[0]) as work:
        for shard in list(work.pending):
            features = _with_memberships(_features(shard.rows))
            work.add(shard, features.assignment, features.membership)
        work.switch()


def state(path):
    """The format that the cache reads as, once its rows are what they should be; None between the formats."""
    try:
        reader = FeatureReader(path)
    except UnfinishedUpgradeError as error:
        if f"xd3d cache upgrade {path}" not in str(error):
            raise
        return None
    assert reader.available.tolist() == [True, False, False, False, True, True]
    read, expected = reader.read([4, 0]), _with_memberships(_features([4, 0]))
    np.testing.assert_array_equal(read.maps["rgb"], expected.maps["rgb"])
    if reader.grid:
        np.testing.assert_array_equal(read.assignment, expected.assignment)
        np.testing.assert_array_equal(read.membership, expected.membership)
    assert verify_cache(path)["ok"]
    return reader.layout.format


def main():
    base, stride = Path(sys.argv[1]), int(sys.argv[2])
    steps, count, found = Steps(), 0, []
    write(base / "first", memberships=False)
    write(base / "second", memberships=True)
    while True:
        path = base / f"killed-{count}"
        shutil.copytree(base / "first", path)
        child = os.fork()
        if child == 0:
            steps.arm(path, count * stride, lambda: os.kill(os.getpid(), signal.SIGKILL))
            upgrade(path)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found.append(state(path))
        upgrade(path)
        assert state(path) == 2
        assert tree(path) == tree(base / "second"), f"step {count * stride}: the result differs from an unbroken one"
        if not os.WIFSIGNALED(status):
            break
        shutil.rmtree(path)
        count += 1
    sys.stdout.write(json.dumps({"killed": count, "states": found}) + "\n")


if __name__ == "__main__":
    main()
