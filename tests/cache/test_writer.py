import os
from dataclasses import replace

import numpy as np
import pytest
import zarr
from numpy_encoder import write_shard
from xd3d.cache.commits import Commit
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import ImageFeatures, named_arrays
from xd3d.cache.stored import StoredRows
from xd3d.cache.verify import verify_cache
from xd3d.errors import CacheError, CacheMismatchError


def without_values(features, row):
    """``features`` with a NaN in the map of one image."""
    values = features.maps["up1"].copy()
    values[row, 2, 1, 0] = np.nan
    return replace(features, maps={**features.maps, "up1": values})


def test_only_what_has_no_record_is_pending(tmp_path, open_writer, features_of_rows):
    with open_writer(tmp_path) as writer:
        shards = writer.pending_shards()
        assert [shard.first for shard in shards] == [0, 4, 8, 12, 16]
        write_shard(writer, shards[2], features_of_rows(shards[2].rows), {})
        assert writer.pending_shards() == shards[:2] + shards[3:]
    with open_writer(tmp_path) as writer:
        assert writer.pending_shards() == shards[:2] + shards[3:]


def test_a_resumed_cache_keeps_its_shards_whatever_size_is_asked_for(cache, open_writer):
    with open_writer(cache, shard_bytes=10**9) as writer:
        assert writer.layout.images_per_shard == 4
        assert writer.pending_shards() == []


def test_the_order_of_shards_does_not_change_a_byte(cache, tmp_path, open_writer, features_of_rows):
    other = tmp_path / "other"
    with open_writer(other) as writer:
        for shard in reversed(writer.pending_shards()):
            write_shard(writer, shard, features_of_rows(shard.rows), {})
    for file in cache.rglob("*"):
        if file.is_file() and file.name != "writer.lock":
            assert (other / file.relative_to(cache)).read_bytes() == file.read_bytes()


def test_failed_and_not_finite_images_are_recorded_stored_as_zeros_and_retried(tmp_path, open_writer, features_of_rows):
    with open_writer(tmp_path) as writer:
        for shard in writer.pending_shards():
            features, failures = features_of_rows(shard.rows), {}
            if shard.index == 1:
                features, failures = without_values(features, 3), {5: "a truncated picture"}
            commit = write_shard(writer, shard, features, failures)
            assert isinstance(commit, Commit)
        assert writer.pending_shards() == []
        retried = writer.pending_shards(retry_failed=True)
        assert [shard.index for shard in retried] == [1]
    reader = FeatureReader(tmp_path)
    assert reader.failed == {
        5: "a truncated picture",
        7: "features/up1 is not finite",
    }
    stored = zarr.open(tmp_path, mode="r")
    for name in reader.layout.arrays:
        assert not stored[name][5].any()
        assert not stored[name][7].any()
        assert stored[name][6].any()
    with open_writer(tmp_path) as writer:
        write_shard(writer, retried[0], features_of_rows(retried[0].rows), {})
        assert writer.pending_shards(retry_failed=True) == []
    assert FeatureReader(tmp_path).failed == {}


def test_clamped_values_are_counted_in_the_commit(tmp_path, open_writer, features_of_rows):
    with open_writer(tmp_path) as writer:
        shard = writer.pending_shards()[1]
        features = features_of_rows(shard.rows)
        features.agents["up1"][2, 0, :4] = 1e5
        commit = write_shard(writer, shard, features, {})
    assert commit.clamped == {"agents/up1": {6: 4}}
    assert FeatureReader(tmp_path).read([6]).agents["up1"][0, 0, :4].tolist() == [65504.0] * 4


def stored(reader, rows):
    """Rows of a cache as they are stored."""
    return StoredRows(rows=rows, arrays=named_arrays(reader.read(rows)))


def test_stored_rows_are_written_as_they_are_and_those_of_failed_images_as_zeros(cache, tmp_path, open_writer):
    reader = FeatureReader(cache)
    with open_writer(tmp_path / "other") as writer:
        for shard in writer.pending_shards():
            rows = stored(reader, list(shard.rows))
            writer.write_rows(shard, rows.with_failures({5: "no picture"}) if shard.index == 1 else rows)
    other = FeatureReader(tmp_path / "other")
    assert other.failed == {5: "no picture"}
    for name, values in named_arrays(reader.read([0, 4, 17])).items():
        np.testing.assert_array_equal(named_arrays(other.read([0, 4, 17]))[name], values)
    assert not zarr.open(tmp_path / "other", mode="r")["features/up1"][5].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.renumbered([4, 5, 6, 7]), r"rows 0 to 3, found 4 rows, the first \[4, 5, 6, 7\]"),
        (lambda s: replace(s, arrays={n: v for n, v in s.arrays.items() if n != "agents/up1"}), "missing"),
        (lambda s: replace(s, arrays={**s.arrays, "features/up9": s.arrays["features/up1"]}), "not expected"),
        (lambda s: replace(s, arrays={**s.arrays, "features/up1": s.arrays["features/up1"].astype("f4")}), "float32"),
        (lambda s: replace(s, arrays={**s.arrays, "features/up1": s.arrays["features/up1"][:, :1]}), "stores float16"),
        (lambda s: s.with_failures({9: "not its row"}), r"Failures name rows \[9\]"),
    ],
)
def test_stored_rows_that_do_not_fit_are_refused(cache, tmp_path, open_writer, change, message):
    with open_writer(tmp_path / "other") as writer:
        with pytest.raises(CacheError, match=message):
            writer.write_rows(writer.layout.shard(0), change(stored(FeatureReader(cache), [0, 1, 2, 3])))
        assert len(writer.pending_shards()) == writer.layout.shard_count


@pytest.mark.parametrize("damage", ["delete", "empty", "truncate", "grow"])
def test_a_shard_whose_file_is_gone_or_of_another_length_is_pending_again(cache, open_writer, damage):
    file = cache / "agents/up1/c/3/0/0"
    data = file.read_bytes()
    {
        "delete": file.unlink,
        "empty": lambda: file.write_bytes(b""),
        "truncate": lambda: file.write_bytes(data[:-1]),
        "grow": lambda: file.write_bytes(data + b"x"),
    }[damage]()
    with open_writer(cache) as writer:
        assert [shard.index for shard in writer.pending_shards()] == [3]


def test_a_shard_with_a_damaged_record_is_pending_again(cache, open_writer):
    (cache / "done/2.json").write_bytes(b"")
    with open_writer(cache) as writer:
        assert [shard.index for shard in writer.pending_shards()] == [2]


def test_two_writers_on_one_cache_the_second_is_reported_who_the_first_is(cache, open_writer):
    with open_writer(cache), pytest.raises(CacheError, match=f"pid {os.getpid()} on"):
        open_writer(cache)
    open_writer(cache).close()


def test_a_closed_writer_writes_nothing(cache, open_writer, features_of_rows):
    writer = open_writer(cache)
    writer.close()
    with pytest.raises(CacheError, match="closed"):
        write_shard(writer, writer.layout.shard(0), features_of_rows(range(4)), {})


def test_a_shard_of_another_cache_is_refused(cache, open_writer, features_of_rows):
    with open_writer(cache) as writer:
        for wrong in (replace(writer.layout.shard(0), last=3), replace(writer.layout.shard(4), index=5)):
            with pytest.raises(CacheError, match="no shard of the cache"):
                write_shard(writer, wrong, features_of_rows(wrong.rows), {})


def test_failures_are_rows_of_the_cache_not_of_the_shard(cache, open_writer, features_of_rows):
    with open_writer(cache) as writer, pytest.raises(CacheError, match=r"rows \[0\].*8 to 11"):
        write_shard(writer, writer.layout.shard(2), features_of_rows(range(8, 12)), {0: "a reason"})


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"fingerprint": {"model": "sd21"}},
            ['model: expected "sd21", found "tiny-street"', "agents.count: expected (absent)"],
        ),
        ({"agents": 4}, ["agents: expected 4, found 3"]),
        ({"images_per_frame": 1}, ["images_per_frame: expected 1, found 2"]),
        ({"image_keys": [f"image-{row:04d}" for row in range(16)]}, ["images: expected 16, found 18"]),
        ({"image_keys": [f"picture-{row}" for row in range(18)]}, ["row 0: expected 'picture-0', found 'image-0000'"]),
    ],
)
def test_a_cache_of_other_settings_is_refused_field_by_field(cache, open_writer, changes, lines):
    with pytest.raises(CacheMismatchError) as caught:
        open_writer(cache, **changes)
    assert all(line in str(caught.value) for line in lines)
    open_writer(cache).close()


def test_a_folder_in_use_for_other_things_is_untouched(tmp_path, open_writer):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(CacheError, match=r"thesis\.tex"):
        open_writer(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_cache_without_images_is_refused(tmp_path, open_writer):
    with pytest.raises(CacheError, match="at least one image"):
        open_writer(tmp_path / "cache", image_keys=[])


@pytest.mark.parametrize("name", ["file", "file/cache"])
def test_a_file_in_place_of_the_cache_is_told(tmp_path, open_writer, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match=r"is a file.*choose a folder"):
        open_writer(tmp_path / name)


def test_links_that_lead_out_of_the_cache_are_refused(tmp_path, open_writer):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features").symlink_to(tmp_path)
    with pytest.raises(CacheError, match="links"):
        open_writer(tmp_path / "cache")


def test_partial_files_of_a_dead_writer_are_swept_on_resume(cache, open_writer):
    litter = [cache / f"staging/features,up1,c,0,0,0,0.{2**22 + 3}.partial", cache / f"done/0.json.{2**22 + 3}.partial"]
    for file in litter:
        file.touch()
    open_writer(cache).close()
    assert not any(file.exists() for file in litter)


def test_a_wrong_batch_commits_nothing(tmp_path, open_writer, features_of_rows):
    with open_writer(tmp_path) as writer:
        shard = writer.pending_shards()[0]
        with pytest.raises(CacheError, match="features/up1"):
            write_shard(writer, shard, features_of_rows(range(3)), {})
        assert shard in writer.pending_shards()


def test_float16_features_are_stored_bit_for_bit(tmp_path, open_writer, features_of_rows):
    features = features_of_rows(range(4))
    half = ImageFeatures(
        maps={**features.maps, "up1": features.maps["up1"].astype(np.float16)},
        agents={"up1": features.agents["up1"].astype(np.float16)},
        geometry=features.geometry,
    )
    with open_writer(tmp_path) as writer:
        write_shard(writer, writer.layout.shard(0), half, {})
    read = FeatureReader(tmp_path).read(range(4))
    np.testing.assert_array_equal(read.maps["up1"], half.maps["up1"])
    np.testing.assert_array_equal(read.geometry, half.geometry)
    assert verify_cache(tmp_path)["ok"]
