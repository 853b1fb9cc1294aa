"""A cache of several networks, whose files are lost, damaged, or written by several processes at once."""

import errno
import json
import os

import pytest
from xd3d.cache.maintenance import repair_cache
from xd3d.cache.network_parts import check_parts, create_networks, network_part, repair_parts
from xd3d.cache.schema import TapSpec
from xd3d.cache.stored import StoredRows
from xd3d.cache.stores.local_files import LocalStage
from xd3d.errors import CacheError, DiskSpaceError

UP1 = TapSpec(name="up1", channels=6, height=3, width=5, extent=(2.75, 5.0))


@pytest.fixture
def fill(open_writer, features_of_rows):
    """Write the pending shards of one network's part; returns their number."""

    def write(path):
        with open_writer(path, taps=(UP1,), agents=0, part="features") as writer:
            pending = writer.pending_shards()
            for shard in pending:
                maps = features_of_rows(shard.rows).maps["up1"].astype("float16")
                writer.write_rows(shard, StoredRows(rows=shard.rows, arrays={"features/up1": maps}))
        return len(pending)

    return write


@pytest.fixture
def networks(tmp_path, fill):
    """A complete cache of two networks."""
    path = tmp_path / "networks"
    create_networks(path)
    for name in ("sd", "dino"):
        fill(network_part(path, name))
    return path


def test_a_lost_manifest_of_a_part_is_damage_and_its_shards_come_back(networks, fill):
    manifest = networks / "features/sd/zarr.json"
    before = manifest.read_bytes()
    manifest.unlink()
    found = check_parts(networks)
    assert not found["ok"]
    assert [fault["file"] for fault in found["damaged"]] == ["features/sd/zarr.json"]
    assert repair_parts(networks) == {"dropped": 0, "metadata": ["features/sd/zarr.json"]}
    assert fill(network_part(networks, "sd")) == 0
    assert manifest.read_bytes() == before
    assert check_parts(networks)["ok"]


@pytest.mark.parametrize("content", [None, b'{"zarr_format": 3, "node'])
def test_a_lost_or_cut_manifest_above_the_parts_is_written_again(networks, content):
    manifest = networks / "zarr.json"
    before = manifest.read_bytes()
    manifest.unlink()
    if content:
        manifest.write_bytes(content)
    create_networks(networks)
    assert manifest.read_bytes() == before
    assert check_parts(networks)["ok"]


def test_a_full_disk_at_the_start_is_no_hindrance_later(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskSpaceError):
            create_networks(tmp_path / "networks")
    create_networks(tmp_path / "networks")
    assert (tmp_path / "networks/zarr.json").is_file()


def test_several_processes_may_create_it_at_once(tmp_path, monkeypatch):
    """The second one starts, and ends, while the first one has staged its files."""
    original, calls = LocalStage.publish, []

    def publish(stage):
        calls.append(stage)
        if len(calls) == 1:
            create_networks(tmp_path / "networks")
        original(stage)

    monkeypatch.setattr(LocalStage, "publish", publish)
    create_networks(tmp_path / "networks")
    assert len(calls) > 2
    assert (tmp_path / "networks/zarr.json").is_file()


@pytest.mark.parametrize("name", ["notes.txt", "zarr.json"])
def test_a_folder_of_other_things_is_refused(tmp_path, name):
    (tmp_path / name).write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(CacheError, match=name):
        create_networks(tmp_path)


def test_a_damaged_manifest_of_a_cache_is_found_and_repaired_like_any_other_file(cache, open_writer):
    manifest = cache / "zarr.json"
    before = manifest.read_bytes()
    manifest.write_bytes(before[:100])
    assert [fault["file"] for fault in check_parts(cache)["damaged"]] == ["zarr.json"]
    assert repair_parts(cache) == {"dropped": 0, "metadata": ["zarr.json"]}
    with open_writer(cache) as writer:
        assert writer.pending_shards() == []
    assert manifest.read_bytes() == before


def test_repair_leaves_other_zarr_groups_alone(networks, tmp_path):
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"mine": 1}}
    (tmp_path / "zarr.json").write_text(json.dumps(group))
    for folder in (tmp_path, networks / "features"):
        before = (folder / "zarr.json").read_bytes()
        with pytest.raises(CacheError, match="no feature cache"):
            repair_cache(folder)
        assert (folder / "zarr.json").read_bytes() == before
        assert not (folder / "writer.lock").exists()
