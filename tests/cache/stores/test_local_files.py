import errno
import os

import pytest
from xd3d.cache.stores.local import LocalStore
from xd3d.cache.stores.local_files import LocalStage
from xd3d.errors import CacheError, DiskSpaceError
from xd3d.locks import WriterLock


@pytest.fixture
def folder(tmp_path):
    for name in ("staging", "done"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_nothing_stands_before_publish_and_everything_after(folder):
    stage = LocalStage(root=folder, owner="me")
    assert stage.write("a/c/0", lambda file: file.write(b"first")) == 5
    stage.write("b/c/0", lambda file: file.write(b"second"))
    assert not (folder / "a").exists()
    stage.publish()
    assert (folder / "a/c/0").read_bytes() == b"first"
    assert (folder / "b/c/0").read_bytes() == b"second"
    assert list((folder / "staging").iterdir()) == []


def test_a_write_that_fails_leaves_nothing_after_discard(folder):
    stage = LocalStage(root=folder, owner="me")
    stage.write("a/0", lambda file: file.write(b"x"))
    with pytest.raises(ZeroDivisionError):
        stage.write("a/1", lambda file: 1 / 0)
    stage.discard()
    assert [file for file in folder.rglob("*") if file.is_file()] == []


def test_only_partial_files_of_the_dead_are_swept(folder):
    lock, dead = WriterLock(path=folder / "writer.lock"), "host~7-00"
    for name in (f"staging/a.{dead}.partial", f"done/3.json.{dead}.partial", "zarr.json.9.partial", "odd.partial"):
        (folder / name).touch()
    kept = folder / f"staging/d.{lock.owner}.partial"
    kept.touch()
    (folder / "staging" / "other.txt").touch()
    assert LocalStore(root=folder).remove_partial(host="") == 4
    assert {file.name for file in folder.rglob("*") if "locks" not in str(file) and file.is_file()} == {
        kept.name,
        "other.txt",
        "writer.lock",
    }
    lock.release()
    assert LocalStore(root=folder).remove_partial(host="") == 1


def test_who_shares_the_cache_leaves_files_of_other_hosts_alone(folder):
    lock = WriterLock(path=folder / "writer.lock", shared=True)
    (folder / f"staging/a.{lock.host}7-00.partial").touch()
    (folder / "staging/a.elsewhere~7-00.partial").touch()
    assert LocalStore(root=folder).remove_partial(host=lock.host) == 1
    assert [file.name for file in (folder / "staging").iterdir()] == ["a.elsewhere~7-00.partial"]
    lock.release()


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        (errno.ENOSPC, DiskSpaceError, "free some space"),
        (errno.EDQUOT, DiskSpaceError, "free some space"),
        (errno.EROFS, CacheError, "mount it writable"),
        (errno.EACCES, CacheError, "change its owner"),
        (errno.EIO, CacheError, "committed before is safe"),
    ],
)
def test_a_fault_of_the_disk_says_what_to_do(folder, code, kind, remedy):
    with pytest.raises(kind, match=remedy) as caught, LocalStore(root=folder).translate_errors("writing shard 3"):
        raise OSError(code, os.strerror(code), "some/file")
    assert "writing shard 3" in str(caught.value)
