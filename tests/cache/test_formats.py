"""Both formats of a cache: what format 2 has more, and that one of format 1 stays what it was."""

import json
from dataclasses import replace

import numpy as np
import pytest
import zarr
from numpy_encoder import write_shard
from xd3d.cache.arrays import write_rows
from xd3d.cache.export import export_cache
from xd3d.cache.layout import PROFILES, CacheLayout
from xd3d.cache.maintenance import collect_garbage
from xd3d.cache.metadata import load_layout
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import ASSIGNMENT, MEMBERSHIP, MEMBERSHIPS, TapSpec
from xd3d.cache.stores import open_store
from xd3d.cache.verify import cache_info, verify_cache
from xd3d.errors import CacheError, CacheMismatchError

GRID = TapSpec(name="up1", channels=6, height=3, width=5, extent=(2.75, 5.0))


def fill(writer, features, failures=None):
    for shard in writer.pending_shards():
        failed = {row: reason for row, reason in (failures or {}).items() if row in shard.rows}
        write_shard(writer, shard, features(shard.rows), failed)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("agents", [3, 256, 257])
def test_memberships_are_given_out_as_they_were_written(
    tmp_path, open_writer, features_of_rows, with_memberships, profile, agents
):
    def features(rows):
        few = features_of_rows(rows)
        queries = np.resize(few.agents["up1"], (len(rows), agents, 6))
        return with_memberships(
            replace(few, agents={"up1": queries}, geometry=np.resize(few.geometry, (len(rows), agents, 5))), agents
        )

    with open_writer(tmp_path, grid=GRID, agents=agents, profile=profile) as writer:
        fill(writer, features, {3: "dark"})
    reader, expected = FeatureReader(tmp_path), features(range(18))
    read = reader.read([5, 0, 17])
    assert reader.grid == GRID
    assert read.assignment.dtype == (np.uint8 if agents <= 256 else np.uint16)
    assert verify_cache(tmp_path)["ok"]
    if agents == 3:  # the fixture draws from the geometry, which a larger number of agents repeats
        np.testing.assert_array_equal(read.assignment, expected.assignment[[5, 0, 17]])
        np.testing.assert_array_equal(read.membership, expected.membership[[5, 0, 17]])
    np.testing.assert_array_equal(zarr.open_array(tmp_path / MEMBERSHIP, mode="r")[[0, 17]], read.membership[[1, 2]])
    assert not zarr.open_array(tmp_path / ASSIGNMENT, mode="r")[3].any()
    with pytest.raises(CacheError, match="dark"):
        reader.read([3])


def test_a_reader_that_wants_no_memberships_does_not_read_them(second_cache):
    (second_cache / ASSIGNMENT / "c/0/0/0/0").unlink()
    reader = FeatureReader(second_cache)
    read = reader.read([2, 0], reader.allocate(2, memberships=False))
    assert read.assignment is None
    assert read.membership is None
    assert set(read.maps) == {"up1", "rgb"}
    wanted = reader.allocate(3, taps=["rgb"])
    assert (list(wanted.maps), list(wanted.agents)) == (["rgb"], [])
    assert wanted.first(2).assignment.shape == (2, 4, 3, 5)
    with pytest.raises(CacheError, match=r"agents/assignment.*missing"):
        reader.read([2, 0])


def test_a_damaged_membership_is_found_and_refused(second_cache):
    file = second_cache / ASSIGNMENT / "c/1/0/0/0"
    data = bytearray(file.read_bytes())
    data[61] ^= 1  # row 5
    file.write_bytes(data)
    with pytest.raises(CacheError, match=r"image-0005.*agents/assignment.*crc32c"):
        FeatureReader(second_cache).read([4, 5])
    assert [(fault["image"], fault["array"]) for fault in verify_cache(second_cache)["damaged"]] == [
        ("image-0005", ASSIGNMENT)
    ]


def test_an_index_of_no_agent_is_refused_even_where_all_checksums_fit(second_cache):
    layout = load_layout(open_store(second_cache))
    file = second_cache / layout.arrays[ASSIGNMENT].shard_file(1)
    rows = np.frombuffer(file.read_bytes()[: 4 * 60], np.uint8).reshape(4, 60).copy()
    rows[2, 7] = 3
    with file.open("wb") as target:
        checksums = write_rows(target, list(rows), layout.images_per_shard)
    forge_record(second_cache, 1, checksums)
    reader = FeatureReader(second_cache)
    for _ in range(2):  # not only when checksums are compared
        with pytest.raises(CacheError, match=r"image-0006.*agents/assignment.*names agent 3 of 3"):
            reader.read([6, 5, 7])
    reader.read([5, 7])
    assert [fault["image"] for fault in verify_cache(second_cache)["damaged"]] == ["image-0006"]
    with pytest.raises(CacheError, match=r"image-0006.*names agent 3"):
        export_cache(second_cache, second_cache.parent / "out")


def forge_record(cache, shard, checksums):
    from xd3d.cache.commits import Commit

    store = open_store(cache)
    commit = Commit.read(store, shard)
    forged = replace(commit, crc32c={**commit.crc32c, ASSIGNMENT: checksums})
    (cache / f"done/{shard}.json").write_bytes(forged.encode())


def test_shards_and_fingerprint_are_the_same_in_both_formats(cache, second_cache):
    first, second = FeatureReader(cache), FeatureReader(second_cache)
    assert (first.layout.format, second.layout.format) == (1, 2)
    assert first.grid is None
    assert first.layout.identity == second.layout.identity
    assert first.layout.images_per_shard == second.layout.images_per_shard
    assert second.layout.bytes_per_image - first.layout.bytes_per_image == 2 * 4 * 3 * 5
    assert {*cache_info(second_cache)["arrays"]} - {*cache_info(cache)["arrays"]} == {*MEMBERSHIPS}


def test_an_export_keeps_memberships_even_without_the_tap_of_their_grid(second_cache, tmp_path, assert_same):
    whole = FeatureReader(second_cache)
    export_cache(second_cache, tmp_path / "taps", taps=["rgb"])
    part = FeatureReader(tmp_path / "taps")
    assert part.grid == GRID
    assert list(part.taps) == ["rgb"]
    assert_same(part.read([4]), replace(whole.read([4]), maps=part.read([4]).maps, agents={}))
    export_cache(second_cache, tmp_path / "images", images=["image-0007", "image-0002"])
    assert_same(FeatureReader(tmp_path / "images").read([0, 1]), whole.read([2, 7]))


def test_a_cache_keeps_the_format_it_was_begun_in(tmp_path, open_writer, features_of_rows, with_memberships):
    with open_writer(tmp_path / "cache") as writer:
        shard = writer.pending_shards()[0]
        write_shard(writer, shard, features_of_rows(shard.rows), {})
    with open_writer(tmp_path / "cache", grid=GRID) as writer:
        assert writer.layout.grid is None
        fill(writer, lambda rows: with_memberships(features_of_rows(rows)))
    with open_writer(tmp_path / "first") as writer:
        fill(writer, features_of_rows)
    assert tree(tmp_path / "cache") == tree(tmp_path / "first")
    with open_writer(tmp_path / "second", grid=GRID) as writer:
        fill(writer, lambda rows: with_memberships(features_of_rows(rows)))
    with pytest.raises(CacheMismatchError, match="grid"):
        open_writer(tmp_path / "second")
    with pytest.raises(CacheMismatchError, match="grid: expected TapSpec"):
        open_writer(tmp_path / "second", grid=replace(GRID, height=4, extent=(4.0, 5.0), name="up2"))


def tree(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_cache_that_the_last_version_of_format_1_wrote_reads_and_is_finished_as_format_1(first_format, assert_same):
    assert verify_cache(first_format) == {"ok": True, "images": 5, "checked": 4, "damaged": []}
    reader = FeatureReader(first_format)
    assert reader.grid is None
    assert reader.available.tolist() == [True, True, True, False, False]
    stored = reader.read([2, 0])
    assert (stored.assignment, stored.membership) == (None, None)
    np.testing.assert_array_equal(stored.maps["up3"], zarr.open_array(first_format / "features/up3", mode="r")[[2, 0]])
    before, layout = tree(first_format), reader.layout
    with open_again(first_format, layout) as writer:
        (shard,) = writer.pending_shards()
        assert shard.index == 2
        features = replace(
            stored.first(1),
            assignment=np.zeros((1, 4, 13, 23), np.uint8),
            membership=np.zeros((1, 4, 13, 23), np.uint8),
        )
        write_shard(writer, shard, features, {})
    after = tree(first_format)
    assert {name: after[name] for name in before} == before
    reader.refresh()
    assert_same(reader.read([4]), stored.first(1))
    assert collect_garbage(first_format)["files"] == []
    export_cache(first_format, first_format.parent / "out", images=["image-4", "image-0"])
    assert json.loads((first_format.parent / "out/zarr.json").read_text())["attributes"]["xd3d_cache"]["format"] == 1


def open_again(path, layout):
    """Open a writer as stage one does now, which has a grid."""
    from xd3d.cache.writer import CacheWriter

    return CacheWriter.open(
        path,
        taps=layout.taps,
        agents=layout.agents,
        image_keys=layout.image_keys,
        images_per_frame=layout.images_per_frame,
        fingerprint=layout.fingerprint,
        grid=layout.taps[-1],
    )


def test_a_grid_that_contradicts_its_tap_is_refused(layout):
    with pytest.raises(CacheError, match="of another size than its map"):
        replace(layout, grid=replace(GRID, width=6, extent=(2.75, 6.0)))
    with pytest.raises(CacheError, match="cannot name an array"):
        replace(layout, grid=replace(GRID, name="a/b"))
    with pytest.raises(CacheError, match="cannot name an array"):
        CacheLayout(**{**vars_of(layout), "taps": (replace(GRID, name="assignment"),)})


def vars_of(layout):
    return {name: getattr(layout, name) for name in layout.__dataclass_fields__}
