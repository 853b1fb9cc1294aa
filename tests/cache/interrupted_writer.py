"""A script of its own process: write the small cache again and again, each time interrupted at another step.

``interrupted_writer.py FOLDER kill|ENOSPC|EROFS|EACCES STRIDE [shared]``. A step is anything the writer does to the
disk: open a file for writing, flush, rename, make or remove. ``kill`` forks a writer and kills it there, then resumes;
an errno makes the step fail, then the same writer goes on. Each time the end must equal an unbroken run. The last line
is a JSON summary.
"""

import contextlib
import errno
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from conftest import _features, _open, write_shard
from xd3d.cache.reader import FeatureReader
from xd3d.cache.verify import verify_cache
from xd3d.errors import CacheError, DiskSpaceError, Xd3dError

IMAGES = 6
KEYS = [f"image-{row}" for row in range(IMAGES)]


class Steps:
    """Counts the steps under a folder and acts at one of them."""

    def __init__(self):
        self.folder = ""
        self.left = -1
        self.act = None
        self._fsync = os.fsync
        os.fsync = self.flush
        sys.addaudithook(self.audit)

    def arm(self, folder, left, act):
        self.folder, self.left, self.act = str(folder), left, act

    def audit(self, event, arguments):
        if self.left < 0 or event not in ("open", "os.rename", "os.mkdir", "os.remove"):
            return
        reading = event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if str(arguments[0]).startswith(self.folder) and not reading:
            self.count()

    def flush(self, descriptor):
        self.count()
        self._fsync(descriptor)

    def count(self):
        if self.left < 0:
            return
        self.left -= 1
        if self.left < 0:
            self.act()


def open_writer(path):
    return _open(path, image_keys=KEYS, shared="shared" in sys.argv)


def write_all(path):
    with open_writer(path) as writer:
        write_pending(writer)


def write_pending(writer):
    for shard in writer.pending_shards():
        failures = {5: "a picture cut short"} if 5 in shard.rows else {}
        assert writer.claim(shard)
        write_shard(writer, shard, _features(shard.rows), failures)


def tree(path):
    """Every file but those of locks, which the next writer tidies up where their removal failed."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != "writer.lock" and file.parent.name != "locks"
    }


def check_readable_rows(path):
    """Every row is right or refused; nothing committed is damaged."""
    if not (path / "zarr.json").exists():
        return
    reader = FeatureReader(path)
    for row in range(IMAGES):
        if reader.available[row]:
            np.testing.assert_array_equal(reader.read([row]).maps["rgb"], _features([row]).maps["rgb"])
        else:
            with contextlib.suppress(CacheError):
                reader.read([row])
                raise AssertionError("an uncommitted row was given out")
    assert verify_cache(path)["damaged"] == []


def killed(steps, path, step):
    child = os.fork()
    if child == 0:
        steps.arm(path, step, lambda: os.kill(os.getpid(), signal.SIGKILL))
        write_all(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0
        return False
    check_readable_rows(path)
    write_all(path)
    return True


def failed(steps, path, step, code):
    def fail():
        raise OSError(code, os.strerror(code), str(path))

    steps.arm(path, step, fail)
    expected = DiskSpaceError if code == errno.ENOSPC else CacheError
    writer = None
    try:
        writer = open_writer(path)
        write_pending(writer)
    except expected:
        assert not list((path / "staging").glob("*.partial"))
        check_readable_rows(path)
        write_pending(writer) if writer else write_all(path)
        return True
    except Xd3dError as error:
        raise AssertionError(f"step {step}: {error!r}") from error
    finally:
        if writer:
            writer.close()
    reached = steps.left < 0  # a folder that is there already may well fail to be made
    steps.left = -1
    if reached:
        open_writer(path).close()  # the next writer marks a finished cache where this one could not
    return reached


def main():
    base, mode, stride = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    steps = Steps()
    reference = base / "reference"
    write_all(reference)
    unbroken = tree(reference)
    count = 0
    while True:
        path = base / f"{mode}-{count}"
        step = count * stride
        again = killed(steps, path, step) if mode == "kill" else failed(steps, path, step, getattr(errno, mode))
        assert tree(path) == unbroken, f"step {step}: the result differs from an unbroken run"
        if not again:
            break
        count += 1
    sys.stdout.write(json.dumps({"interrupted": count}) + "\n")


if __name__ == "__main__":
    main()
