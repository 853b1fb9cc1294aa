import errno
import fcntl
import os
import subprocess
import sys

import pytest
from xd3d.errors import CacheError, RunError
from xd3d.locks import WriterLock, exclusive_lock, live_owners

HOLDER = """
import sys
from pathlib import Path
from xd3d.locks import WriterLock
lock = WriterLock(path=Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_lock_names_the_process_that_holds_the_first(tmp_path):
    lock = WriterLock(path=tmp_path / "writer.lock")
    with pytest.raises(CacheError, match=f"pid {os.getpid()} on "):
        WriterLock(path=tmp_path / "writer.lock")
    lock.release()
    lock.release()
    again = WriterLock(path=tmp_path / "writer.lock")
    assert again.held
    again.release()


def test_a_lock_dies_with_its_process(tmp_path):
    path = tmp_path / "writer.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(CacheError, match=f"pid {process.pid} on "):
            WriterLock(path=path)
        process.kill()
    WriterLock(path=path).release()


FORKER = """
import os, sys, time
from pathlib import Path
from xd3d.locks import WriterLock
lock = WriterLock(path=Path(sys.argv[1]))
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, b"1" if lock.held else b"0")
    time.sleep(60)
print(os.read(read, 1).decode(), flush=True)
os._exit(0)
"""


def test_a_forked_child_neither_holds_the_lock_nor_keeps_it_alive(tmp_path):
    path = tmp_path / "writer.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", FORKER, path], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    try:
        assert process.stdout.readline() == "0\n"
        assert process.wait(timeout=30) == 0
        WriterLock(path=path).release()
    finally:
        os.killpg(process.pid, 9)
        process.stdout.close()


def test_those_who_share_let_each_other_in_and_nobody_who_wants_to_be_alone(tmp_path):
    path = tmp_path / "writer.lock"
    first, second = (WriterLock(path=path, shared=True) for _ in range(2))
    assert first.owner != second.owner
    assert set(live_owners(tmp_path)) == {first.owner, second.owner}
    with pytest.raises(CacheError, match=rf"pid {os.getpid()} on.*pid {os.getpid()} on"):
        WriterLock(path=path)
    first.release()
    with pytest.raises(CacheError, match=f"pid {os.getpid()} on "):
        WriterLock(path=path)
    second.release()
    alone = WriterLock(path=path)
    with pytest.raises(CacheError, match="Another writer"):
        WriterLock(path=path, shared=True)
    alone.release()
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_claim_is_one_workers_until_it_gives_it_up(tmp_path):
    first, second = (WriterLock(path=tmp_path / "writer.lock", shared=True) for _ in range(2))
    assert first.claim(3)
    assert first.claim(3)
    assert not second.claim(3)
    assert (first.has_claimed(3), second.has_claimed(3), first.has_claimed(4)) == (True, False, False)
    first.unclaim(3)
    assert second.claim(3)
    second.release()
    assert first.claim(3)
    first.release()
    assert list((tmp_path / "locks").iterdir()) == []


CLAIMER = """
import sys
from pathlib import Path
from xd3d.locks import WriterLock
lock = WriterLock(path=Path(sys.argv[1]), shared=True)
lock.claim(0)
print("claimed", flush=True)
sys.stdin.read()
"""


def test_a_dead_workers_claim_vanishes_with_it_and_its_stale_files_are_removed(tmp_path):
    path = tmp_path / "writer.lock"
    process = subprocess.Popen([sys.executable, "-c", CLAIMER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"claimed\n"
        lock = WriterLock(path=path, shared=True)
        assert not lock.claim(0)
        process.kill()
    assert lock.claim(0)
    lock.release()
    assert [file.suffix for file in (tmp_path / "locks").iterdir()] == [".holder"]
    assert live_owners(tmp_path) == {}
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_folder_has_one_user_at_a_time(tmp_path):
    def use():
        return exclusive_lock(tmp_path / "new", work="trains", option="--run")

    with use(), pytest.raises(RunError, match=r"with --run"), use():
        raise AssertionError
    assert list((tmp_path / "new").iterdir()) == []


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def refuse(descriptor, mode):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_disk_without_locks_is_used_with_a_warning(tmp_path, no_locks, caplog):
    with exclusive_lock(tmp_path, work="trains"):
        assert "has no locks" in caplog.text


def test_a_cache_needs_a_disk_with_locks(tmp_path, no_locks):
    with pytest.raises(CacheError, match=r"no locks.*XD3D_CACHES"):
        WriterLock(path=tmp_path / "writer.lock")
