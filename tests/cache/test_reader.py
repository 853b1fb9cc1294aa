import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_encoder import write_shard
from xd3d.cache.commits import Commit
from xd3d.cache.maintenance import repair_cache
from xd3d.cache.metadata import manifest_checksum
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import ImageFeatures, TapSpec, named_arrays
from xd3d.cache.stores import local_files
from xd3d.cache.stores.local import LocalStore
from xd3d.cache.writer import CacheWriter
from xd3d.errors import CacheError, CacheMismatchError

NAMES = ["features/up1", "features/rgb", "agents/up1", "agents/geometry"]


def assert_equal(features, expected):
    """Bit for bit, in the stored types."""
    for kind in ("maps", "agents"):
        ours, theirs = getattr(features, kind), getattr(expected, kind)
        assert ours.keys() == theirs.keys()
        for tap, values in theirs.items():
            stored = values if values.dtype == np.uint8 else values.astype(np.float16)
            np.testing.assert_array_equal(ours[tap], stored)
            assert ours[tap].dtype == stored.dtype
    np.testing.assert_array_equal(features.geometry, expected.geometry)


@st.composite
def caches(draw):
    """Taps, sizes and features of a small cache, and rows to read from it."""
    taps = []
    for i in range(draw(st.integers(1, 2))):
        c, h, w = draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)))
        taps.append(TapSpec(name=f"up{i}", channels=c, height=h, width=w, extent=(float(h), w / 2)))
    if draw(st.booleans()):
        taps.insert(0, TapSpec(name="rgb", channels=3, height=2, width=2, extent=(2.0, 2.0), dtype="uint8"))
    views, frames, shard = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 400))
    images, agents = views * frames, draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    rows = draw(st.lists(st.integers(0, images - 1), max_size=8))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    maps, queries = {}, {}
    for tap in taps:
        shape = (images, tap.channels, tap.height, tap.width)
        if tap.dtype == "uint8":
            maps[tap.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            maps[tap.name] = rng.standard_normal(shape).astype(dtype)
            queries[tap.name] = rng.standard_normal((images, agents, tap.channels)).astype(dtype)
    geometry = rng.random((images, agents, 5), dtype=np.float32)
    return taps, views, shard, agents, ImageFeatures(maps=maps, agents=queries, geometry=geometry), rows


def rows_of(features, rows):
    rows = list(rows)
    return ImageFeatures(
        maps={tap: values[rows] for tap, values in features.maps.items()},
        agents={tap: values[rows] for tap, values in features.agents.items()},
        geometry=features.geometry[rows],
    )


@settings(max_examples=25, deadline=None)
@given(caches())
def test_any_rows_in_any_order_come_back_as_they_were_written_and_as_zarr_reads_them(case):
    taps, views, shard_bytes, agents, features, rows = case
    keys = [f"key {row}" for row in range(len(features.geometry))]
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        path = Path(folder) / "cache"
        with CacheWriter.open(
            path,
            taps=taps,
            agents=agents,
            image_keys=keys,
            images_per_frame=views,
            fingerprint={},
            shard_bytes=shard_bytes,
        ) as writer:
            for shard in writer.pending_shards():
                write_shard(writer, shard, rows_of(features, shard.rows), {})
        reader = FeatureReader(path, expected={})
        read = reader.read(rows)
        assert_equal(read, rows_of(features, rows))
        stored = zarr.open(path, mode="r")
        for name, values in named_arrays(read).items():
            assert stored[name].dtype == values.dtype
            np.testing.assert_array_equal(stored[name][:][rows], values)
        assert list(reader.taps.values()) == taps
        assert (reader.agents, list(reader.image_keys), reader.failed) == (agents, keys, {})


def test_rows_may_be_an_array_and_buffers_are_used_again(cache, features_of_rows):
    reader = FeatureReader(cache)
    out = reader.allocate(3)
    for rows in ([17, 0, 17], [3, 4, 5], [5, 4, 3]):
        read = reader.read(np.array(rows), out)
        assert read is out
        assert_equal(read, features_of_rows(rows))


def test_a_buffer_that_does_not_fit_is_refused(cache):
    reader = FeatureReader(cache)
    out = reader.allocate(6)
    for wrong in (
        out,
        ImageFeatures(maps={}, agents=out.agents, geometry=out.geometry),
        ImageFeatures(
            maps={t: v[::2] for t, v in out.maps.items()},
            agents={t: v[::2] for t, v in out.agents.items()},
            geometry=out.geometry[::2],
        ),
    ):
        with pytest.raises(CacheError, match=r"allocate\(3\)"):
            reader.read([0, 1, 2], wrong)


def test_arrays_that_the_buffer_lacks_are_not_read(cache, features_of_rows):
    reader = FeatureReader(cache)
    for name in ("features/rgb", "features/up1"):
        shutil.rmtree(cache / name / "c")
    with pytest.raises(CacheError, match="features/rgb"):
        reader.read([3], reader.allocate(1, taps=["rgb"]))
    read = reader.read([3], ImageFeatures(maps={}, agents={}, geometry=reader.allocate(1).geometry))
    np.testing.assert_array_equal(read.geometry, features_of_rows([3]).geometry)


@pytest.mark.parametrize("row", [-1, 18, 2**70])
def test_rows_outside_the_cache_are_refused(cache, row):
    with pytest.raises(CacheError, match=r"0 to 17"):
        FeatureReader(cache).read([0, row])


def test_uncommitted_and_failed_rows_name_image_record_and_reason(tmp_path, open_writer, features_of_rows):
    with open_writer(tmp_path) as writer:
        shard = writer.layout.shard(1)
        write_shard(writer, shard, features_of_rows(shard.rows), {6: "the picture is cut short"})
    reader = FeatureReader(tmp_path)
    assert np.flatnonzero(reader.available).tolist() == [4, 5, 7]
    with pytest.raises(CacheError, match=r"'image-0006' \(row 6\).*done/1\.json.*cut short.*--retry-failed"):
        reader.read([4, 6])
    with pytest.raises(CacheError, match=r"'image-0002' \(row 2\).*done/0\.json.*not"):
        reader.read([4, 2])
    assert_equal(reader.read([4, 5, 7]), features_of_rows([4, 5, 7]))


def test_rows_without_features_are_counted_and_the_first_is_named_without_reading_one(
    tmp_path, open_writer, features_of_rows
):
    with open_writer(tmp_path) as writer:
        shard = writer.layout.shard(1)
        write_shard(writer, shard, features_of_rows(shard.rows), {6: "the picture is cut short"})
    for chunks in tmp_path.rglob("c"):
        shutil.rmtree(chunks)
    reader = FeatureReader(tmp_path)
    reader.require([7, 4, 5])
    with pytest.raises(CacheError, match=r"2 of 4 images.*features.*'image-0006' \(row 6\).*cut"):
        reader.require([4, 6, 5, 0])
    with pytest.raises(CacheError, match=r"1 of 2 images.*Row 18 "):
        reader.require([4, 18])
    exported = FeatureReader(tmp_path, keys=["image-0005", "image-0099"])
    exported.require([0])
    with pytest.raises(CacheError, match=r"'image-0099'"):
        exported.require([0, 1])


def test_another_fingerprint_is_refused_by_exactly_the_fields_that_differ(cache):
    expected = json.loads(json.dumps(FeatureReader(cache).fingerprint))
    FeatureReader(cache, expected=expected)
    expected["agents"]["rounds"] = 12
    with pytest.raises(CacheMismatchError) as caught:
        FeatureReader(cache, expected=expected)
    assert str(caught.value).splitlines()[1:-1] == ["  agents.rounds: expected 12, found 10"]


DAMAGES = {
    "flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "emptied": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeroed": lambda data: bytes(len(data)),
    "deleted": lambda data: None,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_refused_by_image_array_file_and_reason_never_zeros(cache, name, damage):
    reader = FeatureReader(cache)
    file = reader.layout.arrays[name].shard_file(2)
    data = DAMAGES[damage]((cache / file).read_bytes())
    (cache / file).unlink()
    if data is not None:
        (cache / file).write_bytes(data)
    with pytest.raises(CacheError, match=rf"'image-0008' \(row 8\).*array {name}, file.*{file}"):
        reader.read([7, 8])
    reader.read([7, 12])


@pytest.mark.parametrize("name", NAMES)
def test_swapped_shards_are_refused(cache, name):
    reader = FeatureReader(cache)
    one, two = (cache / reader.layout.arrays[name].shard_file(index) for index in (0, 1))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    with pytest.raises(CacheError, match="crc32c"):
        reader.read([0])


def test_a_damaged_record_is_refused_and_the_rest_is_still_read(cache, features_of_rows):
    (cache / "done/1.json").write_text("{}")
    reader = FeatureReader(cache)
    with pytest.raises(CacheError, match=r"'image-0004'.*done/1\.json.*damaged"):
        reader.read([4])
    assert_equal(reader.read([0, 17]), features_of_rows([0, 17]))


@pytest.mark.parametrize("name", NAMES)
def test_an_array_of_another_codec_is_refused_by_the_codecs_name_and_rewritten_by_extraction(
    cache, features_of_rows, recompress, name, open_writer
):
    recompress(cache, name)
    with pytest.raises(CacheError, match=rf"{name}/zarr.json.*zstd.*xd3d cache repair {cache}"):
        FeatureReader(cache)
    assert repair_cache(cache) == {"dropped": 18, "metadata": [f"{name}/zarr.json"]}
    with open_writer(cache) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, features_of_rows(shard.rows), {})
    assert_equal(FeatureReader(cache).read([3, 17]), features_of_rows([3, 17]))


def test_a_shard_that_zarr_wrote_itself_is_read(cache, features_of_rows):
    stored = zarr.open_array(cache / "agents/up1", mode="r+")
    stored[:] = stored[:]
    assert_equal(FeatureReader(cache).read(range(18)), features_of_rows(range(18)))


def test_a_reader_beside_a_writer_sees_commits_when_it_refreshes(tmp_path, open_writer, features_of_rows):
    with open_writer(tmp_path) as writer:
        reader = FeatureReader(tmp_path)
        for shard in writer.pending_shards():
            failures = {shard.first: "dark"} if shard.index == 0 else {}
            write_shard(writer, shard, features_of_rows(shard.rows), failures)
            assert not reader.available[shard.first + 1]
            reader.refresh()
            assert reader.available[shard.first + 1]
        shard = writer.layout.shard(0)
        assert_equal(reader.read([1]), features_of_rows([1]))
        write_shard(writer, shard, features_of_rows(range(1, 5)), {})
        reader.refresh()
        assert_equal(reader.read([0, 1]), features_of_rows([1, 2]))


def test_a_row_replaced_under_an_open_reader_is_taken_from_the_new_commit(tmp_path, open_writer, features_of_rows):
    with open_writer(tmp_path) as writer:
        shard = writer.layout.shard(0)
        write_shard(writer, shard, features_of_rows(shard.rows), {})
        reader = FeatureReader(tmp_path)
        write_shard(writer, shard, features_of_rows(range(8, 12)), {})
        assert_equal(reader.read([0]), features_of_rows([8]))


def test_threads_share_a_reader_that_keeps_few_files_open(cache, features_of_rows):
    reader = FeatureReader(cache)
    expected = {row: features_of_rows([row]) for row in range(18)}

    def work(seed):
        for row in np.random.default_rng(seed).integers(0, 18, 60).tolist():
            assert_equal(reader.read([row]), expected[row])
            if row == seed:
                for array in reader._arrays.values():
                    array.forget()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.fixture
def few_files():
    """A process that may have 400 files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_reading_keeps_few_of_the_files_open_that_the_process_may(tmp_path, open_writer, features_of_rows, few_files):
    keys = [f"k{row}" for row in range(200)]
    with open_writer(tmp_path, image_keys=keys, shard_bytes=1) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, features_of_rows(shard.rows), {})
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = FeatureReader(tmp_path)
    assert_equal(reader.read(range(200)), features_of_rows(range(200)))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 100


@pytest.mark.parametrize("flag", [os.RWF_NOWAIT, None, 1 << 20], ids=["Linux", "another system", "another file system"])
@pytest.mark.parametrize("whole", [False, True])
def test_rows_that_are_not_in_memory_come_back_the_same(whole_cache, features_of_rows, monkeypatch, flag, whole):
    monkeypatch.setattr(local_files, "_NOWAIT", flag)
    with tempfile.TemporaryDirectory() as folder:  # on a disk, where there is one
        cache = Path(shutil.copytree(whole_cache, Path(folder) / "cache"))
        os.sync()
        for file in cache.rglob("c/**/0"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        rows = [3, 17, 4, 5, 6, 3]
        reader = pickle.loads(pickle.dumps(FeatureReader(cache, whole_shards=whole)))
        assert reader._whole_shards == whole
        for _ in range(2):
            assert_equal(reader.read(rows), features_of_rows(rows))


def test_checksums_are_those_of_the_values_in_c_order(cache):
    reader = FeatureReader(cache)
    record = Commit.load(
        LocalStore(root=cache), reader.layout.shard(0), reader.layout, manifest_checksum(reader.layout)
    )
    for name, values in named_arrays(reader.read([0])).items():
        assert record.crc32c[name][0] == google_crc32c.value(values[0].tobytes())


MANY_READERS = """
import resource, sys
from pathlib import Path
from xd3d.cache.reader import FeatureReader
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
readers = [FeatureReader(Path(sys.argv[1])) for _ in range(6)]
for row in range(60):
    for reader in readers:
        reader.read([row])
"""


def test_many_readers_keep_within_the_limit_of_open_files(tmp_path, open_writer, features_of_rows):
    """As for a source and a target of several networks, a reader each, under a limit of 1024."""
    keys = [f"image-{row:04d}" for row in range(60)]
    with open_writer(tmp_path / "cache", image_keys=keys, images_per_frame=1, shard_bytes=1) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, features_of_rows(shard.rows), {})
    done = subprocess.run(
        [sys.executable, "-c", MANY_READERS, tmp_path / "cache"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
