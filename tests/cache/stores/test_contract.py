"""What every store promises, and what a cache does in every store: the same tests for all of them."""

import pickle
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from numpy_encoder import write_shard
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import named_arrays
from xd3d.cache.stores import open_store
from xd3d.cache.stores.s3 import open_bucket, split_url
from xd3d.cache.verify import cache_info, verify_cache
from xd3d.errors import CacheError, CacheMismatchError

HERE = Path(__file__).parent
ARRAYS = ["features/up1", "features/rgb", "agents/up1", "agents/geometry"]


def put(store, files):
    stage = store.stage("me")
    for key, data in files.items():
        assert stage.write(key, lambda file, data=data: file.write(data)) == len(data)
    assert not any(store.exists(key) for key in files)
    stage.publish()


def replace(location, key, data):
    store = open_store(location)
    stage = store.stage("me")
    stage.write(key, lambda file: file.write(data))
    stage.publish()


def zarr_store(location):
    """Where zarr finds the cache: its folder, or zarr's own store of objects."""
    if not isinstance(location, str):
        return location
    bucket, prefix = split_url(location)
    return zarr.storage.ObjectStore(open_bucket(bucket, prefix), read_only=True)


def fill(writer, features_of_rows, shards=None):
    for shard in writer.pending_shards() if shards is None else shards:
        write_shard(writer, shard, features_of_rows(shard.rows), {})


def assert_rows(reader, rows, features_of_rows):
    rows = list(rows)
    read = named_arrays(reader.read(rows))
    for name, values in named_arrays(features_of_rows(rows)).items():
        np.testing.assert_array_equal(read[name], values.astype(read[name].dtype))


@pytest.fixture(params=["local", "s3"])
def location(request, tmp_path):
    """Where a cache may be kept."""
    return tmp_path / "kept" if request.param == "local" else request.getfixturevalue("new_bucket")()


class TestFiles:
    @pytest.fixture
    def store(self, location):
        store = open_store(location)
        store.prepare([])
        return store

    def test_files_appear_when_they_are_published_and_are_listed_with_their_versions(self, store):
        assert store.listing("") == {}
        put(store, {"a/0": b"first", "a/1/2": bytes(6_000_000), "z": b""})
        assert store.read("a/0") == b"first"
        assert store.sizes(["a/1/2", "b"]) == {"a/1/2": 6_000_000}
        assert {"a", "z"} <= store.listing("").keys()
        assert store.listing("a").keys() == {"0", "1"}
        assert store.listing("a")["0"] == store.version("a/0") == store.open("a/0").version
        assert store.version("a/9") is None
        assert store.listing("b") == {}
        assert sorted(store.files()) == [("a/0", 5), ("a/1/2", 6_000_000), ("z", 0)]

    def test_a_replaced_file_has_another_version_and_an_open_one_is_read_on_or_refused(self, store):
        put(store, {"a": b"0123456789"})
        old, version = store.open("a"), store.version("a")
        replace(store.location, "a", b"abcdefghij")
        assert store.version("a") != version
        out = np.empty(4, np.uint8)
        if isinstance(store.location, Path):
            old.read_into(out, 2)
            assert out.tobytes() == b"2345"
        else:
            with pytest.raises(CacheError, match="took its place"):
                old.read_into(out, 2)
        store.open("a").read_into(out, 2)
        assert out.tobytes() == b"cdef"

    def test_what_is_discarded_never_appears(self, store):
        stage = store.stage("me")
        stage.write("a", lambda file: file.write(b"x"))
        stage.discard()
        stage.publish()
        assert not store.exists("a")

    def test_missing_files_and_reads_past_the_end_are_cache_errors(self, store):
        put(store, {"a": b"0123"})
        for look in (store.read, store.open):
            with pytest.raises(CacheError, match=r"b/c.* is missing"):
                look("b/c")
        with pytest.raises(CacheError, match="byte 4, 2 bytes"):
            store.open("a").read_into(np.empty(3, np.uint8), 3)

    def test_deleting_is_for_good_and_harmless_twice(self, store):
        put(store, {"a/0": b"x"})
        for _ in range(2):
            store.delete("a/0")
            assert not store.exists("a/0")

    @pytest.mark.parametrize("count", [2, 9])
    def test_sizes_of_those_that_exist(self, store, count):
        put(store, {f"a/c/{i}/0": bytes(i) for i in range(count)})
        asked = [f"a/c/{i}/0" for i in (*range(count), 77, 78)]
        assert store.sizes(asked) == {f"a/c/{i}/0": i for i in range(count)}
        assert store.sizes([]) == {}

    def test_a_store_comes_back_from_a_pickle(self, store):
        put(store, {"a": b"x"})
        assert pickle.loads(pickle.dumps(store)).read("a") == b"x"


class TestCaches:
    def test_a_cache_is_written_resumed_read_and_verified_with_the_bytes_of_a_local_one(
        self, location, whole_cache, open_writer, features_of_rows
    ):
        with open_writer(location) as writer:
            fill(writer, features_of_rows, writer.pending_shards()[1:3])
            assert [shard.index for shard in writer.pending_shards()] == [0, 3, 4]
        assert cache_info(location)["done"] == 8
        with open_writer(location) as writer:
            assert [shard.index for shard in writer.pending_shards()] == [0, 3, 4]
            fill(writer, features_of_rows)
            assert writer.pending_shards() == []
        assert verify_cache(location) == {"ok": True, "images": 18, "checked": 18, "damaged": []}
        assert_rows(FeatureReader(location), [17, 0, 3, 4, 5, 3], features_of_rows)
        store = open_store(location)
        for file in whole_cache.rglob("*"):
            if file.is_file() and file.name != "writer.lock":
                assert store.read(str(file.relative_to(whole_cache))) == file.read_bytes()
        local = cache_info(whole_cache)
        assert cache_info(location) == {**local, "cache": store.describe()}

    def test_a_plain_zarr_reader_reads_the_same(self, location, open_writer, features_of_rows):
        with open_writer(location) as writer:
            fill(writer, features_of_rows)
        reader = FeatureReader(location)
        group = zarr.open_group(zarr_store(location), mode="r")
        for name, values in named_arrays(reader.read(range(18))).items():
            np.testing.assert_array_equal(group[name][:], values)

    @pytest.mark.parametrize("name", ARRAYS)
    def test_a_flipped_bit_is_refused_by_read_and_found_by_verify(self, location, name, open_writer, features_of_rows):
        with open_writer(location) as writer:
            fill(writer, features_of_rows)
            file = writer.layout.arrays[name].shard_file(2)
        data = bytearray(open_store(location).read(file))
        data[1] ^= 8
        replace(location, file, bytes(data))
        with pytest.raises(CacheError, match=rf"'image-0008'.*array {name}, file .*{file}: .*crc32c"):
            FeatureReader(location).read([7, 8])
        told = verify_cache(location)["damaged"]
        assert [(fault["image"], fault["array"], fault["file"]) for fault in told] == [("image-0008", name, file)]

    def test_a_lost_file_makes_its_shard_pending_again(self, location, open_writer, features_of_rows):
        with open_writer(location) as writer:
            fill(writer, features_of_rows)
            open_store(location).delete(writer.layout.arrays["agents/up1"].shard_file(3))
            assert [shard.index for shard in writer.pending_shards()] == [3]

    def test_a_shard_whose_files_did_not_all_arrive_is_not_there(
        self, location, open_writer, features_of_rows, monkeypatch
    ):
        with open_writer(location) as writer:
            fill(writer, features_of_rows)
            reader, shard = FeatureReader(location), writer.layout.shard(1)
            stage = type(open_store(location).stage("me"))
            monkeypatch.setattr(stage, "publish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                write_shard(writer, shard, features_of_rows(range(8, 12)), {})
            monkeypatch.undo()
            reader.refresh()
            assert np.flatnonzero(~reader.available).tolist() == [4, 5, 6, 7]
            with pytest.raises(CacheError, match="not committed"):
                reader.read([5])

    def test_a_reader_beside_a_writer_sees_all_of_a_shard_or_nothing(
        self, location, open_writer, features_of_rows, monkeypatch
    ):
        seen = []
        with open_writer(location) as writer:
            reader = FeatureReader(location)

            def look(publish, stage):
                publish(stage)
                reader.refresh()
                seen.append(int(reader.available.sum()))

            stage = type(open_store(location).stage("me"))
            publish = stage.publish
            with monkeypatch.context() as patch:
                patch.setattr(stage, "publish", lambda self: look(publish, self))
                fill(writer, features_of_rows)
            assert seen == [0, 4, 4, 8, 8, 12, 12, 16, 16, 18]
            assert_rows(reader, [5], features_of_rows)
            write_shard(writer, writer.layout.shard(1), features_of_rows(range(8, 12)), {})
            old, new = (features_of_rows([row]) for row in (5, 9))
            read = reader.read([5])
            expected = old if (read.maps["rgb"] == old.maps["rgb"]).all() else new
            np.testing.assert_array_equal(read.maps["rgb"], expected.maps["rgb"])
            np.testing.assert_array_equal(read.geometry, expected.geometry)
            reader.refresh()
            np.testing.assert_array_equal(reader.read([5]).geometry, new.geometry)

    def test_other_settings_and_a_place_in_use_are_refused(self, location, open_writer):
        open_writer(location).close()
        with pytest.raises(CacheMismatchError, match="agents: expected 4, found 3"):
            open_writer(location, agents=4)
        other = location / "other" if isinstance(location, Path) else f"{location}/other"
        open_store(other).prepare([])
        replace(other, "thesis.tex", b"x")
        with pytest.raises(CacheError, match="holds other things"):
            open_writer(other)

    def test_a_place_without_a_cache_says_how_to_make_one(self, location):
        for look in (FeatureReader, cache_info, verify_cache):
            with pytest.raises(CacheError, match=r"xd3d extract-features"):
                look(location)

    def test_a_closed_writer_writes_nothing(self, location, open_writer, features_of_rows):
        writer = open_writer(location)
        writer.close()
        with pytest.raises(CacheError, match="closed"):
            write_shard(writer, writer.layout.shard(0), features_of_rows(range(4)), {})


PROCESSES = """
import multiprocessing, sys
from xd3d.cache.reader import FeatureReader

def total(reader, rows):
    return float(reader.read(rows).maps["rgb"].sum())

if __name__ == "__main__":
    reader = FeatureReader(sys.argv[1])
    expected = total(reader, [0, 17, 3])
    for method in ("spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.starmap(total, [(reader, [0, 17, 3])] * 4) == [expected] * 4
    print("done")
"""


@pytest.mark.timeout(120)
def test_a_pickled_reader_reads_in_worker_processes(location, tmp_path, open_writer, features_of_rows):
    with open_writer(location) as writer:
        fill(writer, features_of_rows)
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    command = [sys.executable, script, str(location)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "done\n", done.stderr[-3000:]


def test_checksums_in_a_record_are_those_of_the_bytes_in_the_store(location, open_writer, features_of_rows):
    with open_writer(location) as writer:
        commit = write_shard(writer, writer.layout.shard(0), features_of_rows(range(4)), {})
        array = writer.layout.arrays["features/rgb"]
    data = open_store(location).read(array.shard_file(0))
    assert google_crc32c.value(data[: array.row_bytes]) == commit.crc32c["features/rgb"][0]
