"""Litter goes, what is committed stays: beside readers, beside writers, and whatever links lie about."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from xd3d.cache.maintenance import collect_garbage, remove_unused
from xd3d.cache.reader import FeatureReader
from xd3d.cache.verify import verify_cache
from xd3d.errors import CacheError

HERE = Path(__file__).parent


def tree(folder):
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "writer.lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def litter(cache):
    """Put every kind of litter into the cache; return the names."""
    names = {
        "zarr.json.4242.partial": 3,
        "staging/features,up1,c,1,0,0,0.host~99999999-abcd.partial": 100,
        "staging/notes.txt": 5,
        "done/2.json.17.partial": 9,
        "done/5.json": 7,
        "done/07.json": 7,
        "features/up1/c/5/0/0/0": 50,
        "features/up1/c/0/0/0/1": 20,
        "agents/geometry/c/99/0/0": 30,
        "locks/host~99999999-abcd.holder": 0,
    }
    for name, size in names.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(bytes(size))
    return names


def test_stale_files_is_listed_with_its_bytes_and_then_removed(cache):
    sound = tree(cache)
    names = litter(cache)
    names["features/rgb/c/3/0/0/0"] = len(sound["features/rgb/c/3/0/0/0"])
    (cache / "done/3.json").unlink()  # so its shard files are nobody's
    told = collect_garbage(cache, dry_run=True)
    found = {entry["file"]: entry["bytes"] for entry in told["files"]}
    assert found.keys() >= names.keys()
    assert found["features/rgb/c/3/0/0/0"] == names["features/rgb/c/3/0/0/0"]
    assert told["bytes"] == sum(found.values())
    assert (cache / "staging/notes.txt").exists()
    again = collect_garbage(cache)
    assert again["files"] == told["files"]
    left = tree(cache)
    assert left == {name: data for name, data in sound.items() if "/c/3/" not in name and name != "done/3.json"}
    assert collect_garbage(cache)["files"] == []
    told = verify_cache(cache)
    assert told["checked"] == 14
    assert [fault["file"] for fault in told["damaged"]] == ["done/3.json"]


def test_what_is_damaged_or_foreign_is_untouched(cache):
    (cache / "done/1.json").write_bytes(b"damaged")
    (cache / "notes.md").write_text("mine")
    (cache / "features/mine").mkdir()
    (cache / "features/mine/zarr.json").write_text("{}")
    sound = tree(cache)
    assert collect_garbage(cache)["files"] == []
    assert tree(cache) == sound


def test_links_are_removed_or_left_and_never_followed(cache, tmp_path):
    outside = tmp_path / "outside"
    (outside / "0/0").mkdir(parents=True)
    (outside / "0/0/0").write_text("precious")
    (cache / "features/up1/c/7").symlink_to(outside)
    (cache / "staging/way-out").symlink_to(outside)
    (cache / "done/9.json").symlink_to(outside / "0/0/0")
    (cache / "staging/broken").symlink_to(tmp_path / "nowhere")
    told = collect_garbage(cache)
    assert {entry["file"] for entry in told["files"]} == {
        "features/up1/c/7",
        "staging/way-out",
        "staging/broken",
        "done/9.json",
    }
    assert tree(outside) == {"0/0/0": b"precious"}
    assert not (cache / "features/up1/c/7").is_symlink()


def test_a_folder_behind_a_link_is_refused(cache, tmp_path):
    outside = tmp_path / "outside"
    (cache / "staging").rename(outside)
    (cache / "staging").symlink_to(outside)
    (outside / "x.partial").write_text("precious")
    with pytest.raises(CacheError, match=r"\(staging\)"):
        collect_garbage(cache)
    assert (outside / "x.partial").exists()


def test_a_reader_reads_on_while_stale_files_are_removed(cache, features_of_rows):
    reader = FeatureReader(cache)
    before = reader.read(range(18)).maps["up1"].copy()
    litter(cache)
    assert len(collect_garbage(cache)["files"]) == 10
    assert (reader.read(range(18)).maps["up1"] == before).all()
    assert (FeatureReader(cache).read(range(18)).maps["up1"] == before).all()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import _features, _open, write_shard
with _open(Path(sys.argv[1])) as writer:
    first, second, *_ = writer.pending_shards()
    write_shard(writer, first, _features(first.rows), {})
    print("at work", flush=True)
    sys.stdin.readline()
    write_shard(writer, second, _features(second.rows), {})
"""


def test_a_live_writer_is_named_and_loses_nothing_and_a_dead_ones_stale_files_are_removed(tmp_path):
    command = [sys.executable, "-c", WRITER, tmp_path / "cache", HERE]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "at work\n"
    (tmp_path / "cache/staging/theirs.partial").write_text("half")
    with pytest.raises(CacheError, match=rf"Another writer.*pid {writer.pid} "):
        collect_garbage(tmp_path / "cache")
    assert (tmp_path / "cache/staging/theirs.partial").exists()
    writer.communicate("go on\n", timeout=60)
    assert writer.returncode == 0
    assert [entry["file"] for entry in collect_garbage(tmp_path / "cache")["files"]] == ["staging/theirs.partial"]
    assert verify_cache(tmp_path / "cache")["checked"] == 8


def test_a_cache_that_nothing_was_committed_to_goes_and_any_other_stays(tmp_path, open_writer, cache):
    open_writer(tmp_path / "empty").close()
    told = remove_unused(tmp_path / "empty", dry_run=True)
    assert {"zarr.json", "images.json"} <= {entry["file"] for entry in told["files"]}
    assert (tmp_path / "empty/zarr.json").exists()
    remove_unused(tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    assert remove_unused(cache) is None
    with open_writer(tmp_path / "begun"), pytest.raises(CacheError, match=f"pid {os.getpid()} "):
        remove_unused(tmp_path / "begun")
    (tmp_path / "begun/notes.md").write_text("mine")
    assert remove_unused(tmp_path / "begun") is None


def test_an_unused_cache_behind_a_link_is_kept(tmp_path, open_writer):
    open_writer(tmp_path / "empty").close()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert remove_unused(tmp_path / "link") is None
    assert (tmp_path / "empty/zarr.json").is_file()
