import os
from pathlib import Path

import numpy as np
import pytest
from xd3d.cache.stores.local import LocalStore
from xd3d.cache.stores.local_files import LocalFile
from xd3d.errors import CacheError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "0"
    path.write_bytes(bytes(range(100)))
    return path


@pytest.mark.timeout(10)
def test_a_pipe_or_a_folder_in_place_of_a_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    store = LocalStore(root=tmp_path)
    for key in ("pipe", ""):
        for look in (store.open, store.read):
            with pytest.raises(CacheError, match="not a regular file"):
                look(key)


def test_closed_files_leave_no_descriptors(file):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        LocalFile(file)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_an_open_file_is_read_on_after_another_took_its_place(file):
    store = LocalStore(root=file.parent)
    old = store.open("0")
    stage = store.stage("me")
    stage.write("0", lambda out: out.write(b"new"))
    stage.publish()
    out = np.empty(3, np.uint8)
    old.read_into(out, 97)
    assert out.tolist() == [97, 98, 99]
    assert (old.size, store.open("0").size) == (100, 3)


def test_a_listing_survives_files_that_vanish_while_it_is_made(tmp_path, monkeypatch):
    for name in ("0.json", "1.json"):
        (tmp_path / name).touch()
    scan = os.scandir

    def late(folder):
        entries = scan(folder)
        (tmp_path / "1.json").unlink()
        return entries

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", late)
        assert set(LocalStore(root=tmp_path).listing("")) <= {"0.json"}


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path):
    assert LocalStore(root=tmp_path / "to" / "come").free_bytes() > 0


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_in_memory_is_read_at_once_and_the_end_of_a_file_is_left_to_the_read_that_waits(file, whole):
    opened, size = LocalFile(file), file.stat().st_size
    out = np.zeros(size, np.uint8)
    if not opened.read_if_cached(out, 0, whole=whole):  # this file system cannot tell, or the page was dropped
        opened.read_into(out, 0)
    assert out.tobytes() == file.read_bytes()
    assert not opened.read_if_cached(out, 1, whole=whole)
    with pytest.raises(CacheError, match="1 bytes early"):
        opened.read_into(out, 1)
