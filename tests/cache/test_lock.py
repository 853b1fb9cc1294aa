import os
import subprocess
import sys

import pytest
from xd3d.cache.lock import WriterLock
from xd3d.errors import CacheError

HOLDER = """
import sys
from pathlib import Path
from xd3d.cache.lock import WriterLock
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
from xd3d.cache.lock import WriterLock
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
