"""The way from format 1 to format 2: whole at every moment, and nothing that was stored is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy_encoder import write_shard
from xd3d.cache.maintenance import collect_garbage, diff_caches, repair_cache
from xd3d.cache.metadata import load_layout
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import ASSIGNMENT
from xd3d.cache.stores import open_store
from xd3d.cache.upgrade import CacheUpgrade, finish_upgrade
from xd3d.cache.verify import cache_info, verify_cache
from xd3d.errors import CacheError, UnfinishedUpgradeError

HERE = Path(__file__).parent


def upgraded(path, features_of_rows, with_memberships, stop_before_switch=False):
    grid = load_layout(open_store(path)).taps[0]
    with CacheUpgrade.open(path, grid=grid) as work:
        for shard in list(work.pending):
            features = with_memberships(features_of_rows(shard.rows))
            work.add(shard, features.assignment, features.membership)
        if not stop_before_switch:
            work.switch()


@pytest.fixture
def upgrade(features_of_rows, with_memberships):
    """Upgrade the small cache in a folder, as far as ``stop_before_switch`` says."""
    return lambda path, **options: upgraded(path, features_of_rows, with_memberships, **options)


@pytest.fixture
def unfinished(cache, upgrade, monkeypatch):
    """A cache whose upgrade was stopped when one commit record was exchanged."""
    from xd3d.cache import upgrade as module

    upgrade(cache, stop_before_switch=True)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_exchange_records", lambda *_: None)
        upgrade(cache)
    shutil.copy(cache / "upgrade/1.json", cache / "done/1.json")
    return cache


def tree(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != "writer.lock" and file.parent.name != "locks"
    }


def test_an_upgraded_cache_is_byte_for_byte_one_that_had_memberships_from_the_start(cache, second_cache, upgrade):
    upgrade(cache)
    assert tree(cache) == tree(second_cache)
    assert diff_caches(cache, second_cache)["equal"]
    assert finish_upgrade(cache)
    with pytest.raises(CacheError, match="format 2 already"):
        upgrade(cache)


def test_until_the_switch_it_is_a_whole_cache_of_format_1(cache, upgrade):
    before = tree(cache)
    upgrade(cache, stop_before_switch=True)
    after = tree(cache)
    assert {name: after[name] for name in before} == before
    assert cache_info(cache)["done"] == 18
    assert verify_cache(cache)["ok"]
    assert collect_garbage(cache)["files"] == []
    assert not finish_upgrade(cache)
    FeatureReader(cache).read(range(18))


def test_between_the_formats_everybody_is_sent_to_the_command_that_finishes(unfinished, open_writer, second_cache):
    command = f"xd3d cache upgrade {unfinished}"
    for look in (
        lambda: FeatureReader(unfinished),
        lambda: open_writer(unfinished),
        lambda: cache_info(unfinished),
        lambda: collect_garbage(unfinished),
        lambda: repair_cache(unfinished),
    ):
        with pytest.raises(UnfinishedUpgradeError, match=command):
            look()
    assert command in verify_cache(unfinished)["damaged"][0]["reason"]
    assert finish_upgrade(unfinished)
    assert tree(unfinished) == tree(second_cache)


def test_a_reader_that_was_open_before_reads_on_and_says_what_happened_once_it_looks(cache, upgrade):
    reader = FeatureReader(cache)
    expected = reader.read([3])
    upgrade(cache)
    np.testing.assert_array_equal(reader.read([3]).maps["up1"], expected.maps["up1"])
    reader.refresh()
    with pytest.raises(CacheError, match="was upgraded to another format since it was opened"):
        reader.read([3])


def test_a_reader_that_looks_in_the_middle_names_the_command(cache, upgrade, monkeypatch):
    from xd3d.cache import upgrade as module

    reader = FeatureReader(cache)
    upgrade(cache, stop_before_switch=True)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_exchange_records", lambda *_: None)
        upgrade(cache)
    shutil.copy(cache / "upgrade/0.json", cache / "done/0.json")
    reader.refresh()
    with pytest.raises(UnfinishedUpgradeError, match="xd3d cache upgrade"):
        reader.read([3])
    with pytest.raises(CacheError, match="xd3d cache upgrade"):
        reader.require([3])


def test_what_is_staged_counts_only_while_it_fits_what_is_stored(cache, upgrade, open_writer, features_of_rows):
    upgrade(cache, stop_before_switch=True)
    (cache / "done/0.json").unlink()  # a shard that was withdrawn
    (cache / "done/1.json").unlink()  # one that is written anew, with a failed image
    with open_writer(cache) as writer:
        shard = writer.layout.shard(1)
        write_shard(writer, shard, features_of_rows(shard.rows), {5: "dark"})
    file = cache / ASSIGNMENT / "c/2/0/0/0"
    file.write_bytes(file.read_bytes()[:-1])
    staged = bytearray((cache / "upgrade/3.json").read_bytes())
    staged[40] ^= 1
    (cache / "upgrade/3.json").write_bytes(staged)
    with CacheUpgrade.open(cache, grid=FeatureReader(cache).layout.taps[0]) as work:
        assert [shard.index for shard in work.pending] == [1, 2, 3]
        with pytest.raises(CacheError, match=r"3 shards"):
            work.switch()
    upgrade(cache)
    reader = FeatureReader(cache)
    assert np.flatnonzero(~reader.available).tolist() == [0, 1, 2, 3, 5]
    assert [fault["file"] for fault in verify_cache(cache)["damaged"]] == ["done/0.json"]


def test_what_cannot_be_upgraded_is_refused_before_anything_changes(cache, upgrade, open_writer, monkeypatch):
    before = tree(cache)
    with open_writer(cache), pytest.raises(CacheError, match="Another writer"):
        upgrade(cache)
    record = bytearray((cache / "done/1.json").read_bytes())
    record[50] ^= 1
    (cache / "done/1.json").write_bytes(record)
    with pytest.raises(CacheError, match=r"1 commit.*xd3d cache repair"):
        upgrade(cache)
    (cache / "done/1.json").write_bytes(before["done/1.json"])
    (cache / "features/up1/zarr.json").unlink()
    with pytest.raises(CacheError, match="xd3d cache repair"):
        upgrade(cache)
    (cache / "features/up1/zarr.json").write_bytes(before["features/up1/zarr.json"])
    assert tree(cache) == before


def test_a_store_of_objects_is_upgraded_too(new_bucket, open_writer, features_of_rows, upgrade):
    place = new_bucket()
    with open_writer(place) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, features_of_rows(shard.rows), {})
    upgrade(place)
    assert verify_cache(place) == {"ok": True, "images": 18, "checked": 18, "damaged": []}
    assert FeatureReader(place).read([4]).assignment.shape == (1, 4, 3, 5)
    assert not open_store(place).listing("upgrade")


def interrupt(folder, stride):
    script = [sys.executable, HERE / "interrupted_upgrade.py", folder, str(stride)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_an_upgrade_killed_at_some_steps_ends_as_an_unbroken_one(tmp_path):
    assert interrupt(tmp_path, 4)["killed"] > 20


@pytest.mark.slow
def test_an_upgrade_killed_at_any_step_ends_as_an_unbroken_one(tmp_path):
    found = interrupt(tmp_path, 1)
    assert found["killed"] > 80
    assert set(found["states"]) == {1, 2, None}
