"""Several writers on one cache: each shard is written once, by one of them, and the end is that of a single writer."""

import subprocess
import sys
from pathlib import Path

import pytest
from numpy_encoder import write_shard
from xd3d.cache.verify import verify_cache
from xd3d.errors import CacheError, CacheMismatchError

HERE = Path(__file__).parent


def tree(folder):
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "writer.lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_shard_is_written_by_the_one_who_claimed_it_and_not_again(tmp_path, open_writer, features_of_rows):
    with open_writer(tmp_path, shared=True) as first, open_writer(tmp_path, shared=True) as second:
        shards = first.pending_shards()
        assert second.pending_shards() == shards
        assert first.claim(shards[0])
        assert not second.claim(shards[0])
        with pytest.raises(CacheError, match="claim"):
            write_shard(second, shards[0], features_of_rows(shards[0].rows), {})
        write_shard(first, shards[0], features_of_rows(shards[0].rows), {})
        assert not second.claim(shards[0])
        assert second.pending_shards() == shards[1:]


def test_a_shard_that_another_one_retried_is_not_retried_again(tmp_path, open_writer, features_of_rows):
    with open_writer(tmp_path, shared=True) as first, open_writer(tmp_path, shared=True) as second:
        shard = first.pending_shards()[1]
        assert first.claim(shard)
        write_shard(first, shard, features_of_rows(shard.rows), {shard.first: "cut short"})
        retried = [writer.pending_shards(retry_failed=True)[1] for writer in (first, second)]
        assert retried == [shard, shard]
        assert first.claim(shard)
        write_shard(first, shard, features_of_rows(shard.rows), {shard.first: "still cut short"})
        assert not second.claim(shard)


def test_a_shared_writer_of_other_settings_is_refused_and_leaves_no_lock(tmp_path, open_writer):
    with open_writer(tmp_path, shared=True):
        with pytest.raises(CacheMismatchError):
            open_writer(tmp_path, shared=True, agents=4)
        with pytest.raises(CacheError, match="Another writer"):
            open_writer(tmp_path)
    open_writer(tmp_path).close()
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_co_workers_staged_files_are_untouched(tmp_path, open_writer, features_of_rows):
    with open_writer(tmp_path, shared=True) as first:
        staged = tmp_path / "staging" / f"features,up1,c,0,0,0,0.{first._lock.owner}.partial"
        staged.touch()
        open_writer(tmp_path, shared=True).close()
        assert staged.exists()
    open_writer(tmp_path, shared=True).close()
    assert not staged.exists()


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import _features, _open, write_shard
sys.stdin.readline()
with _open(Path(sys.argv[1]), image_keys=[f"k{i}" for i in range(400)], shared=True) as writer:
    while pending := writer.pending_shards():
        for shard in pending:
            if writer.claim(shard):
                write_shard(writer, shard, _features(shard.rows), {})
                print(shard.index, flush=True)
"""


def test_processes_that_share_a_cache_write_each_shard_once(tmp_path, open_writer, features_of_rows):
    command = [sys.executable, "-c", WORKER, tmp_path / "shared", HERE]
    processes = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(3)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    written = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(int(shard) for lines in written for shard in lines) == list(range(100))
    assert verify_cache(tmp_path / "shared")["ok"]
    with open_writer(tmp_path / "alone", image_keys=[f"k{i}" for i in range(400)]) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, features_of_rows(shard.rows), {})
    assert tree(tmp_path / "shared") == tree(tmp_path / "alone")
