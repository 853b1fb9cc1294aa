"""Stage one with its cache in a bucket: workers fill it and damage to it is mended, to the bytes that a folder has."""

import os

import pytest
from xd3d.cache.layout import CacheLayout
from xd3d.cache.maintenance import repair_cache
from xd3d.cache.reader import FeatureReader
from xd3d.cache.stores import open_store
from xd3d.cache.verify import verify_cache
from xd3d.errors import CacheError, StoreError
from xd3d.stages.extract import dask_cluster
from xd3d.stages.extract.dask_cluster import extract_with_workers
from xd3d.stages.extract.dask_workers import fill_task
from xd3d.stages.extract.images import PictureSource
from xd3d.stages.extract.job import extract_features


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of two images; workers find them in the cache."""
    monkeypatch.setattr(CacheLayout, "shard_images", staticmethod(lambda _t, _a, images, _f, _b: min(2, images)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def index(make_index):
    """Five pictures, the second of which is none."""
    made = make_index(5)
    (made.root / str(made.images.path[1])).write_bytes(b"no picture")
    return made


def objects(url):
    """Every object of a cache in a bucket."""
    store = open_store(url)
    return {key: store.read(key) for key, _ in store.files()}


def files(folder):
    """Every file of a cache in a folder, but its lock."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != "writer.lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def replace(url, key, data):
    stage = open_store(url).stage("damage")
    stage.write(key, lambda file: file.write(data))
    stage.publish()


def flipped(data, place):
    changed = bytearray(data)
    changed[place] ^= 4
    return bytes(changed)


def deadly(name, shards):
    """In a worker: the task, but the first worker that comes to shard 1 is killed over it."""
    if 1 in shards:
        try:
            os.mkdir(os.environ["XD3D_TEST_DEATHS"])  # noqa: PTH102
        except FileExistsError:
            return fill_task(name, shards)
        os.kill(os.getpid(), 9)
    return fill_task(name, shards)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_workers_fill_a_bucket_like_a_folder_though_one_is_killed(settings, index, new_bucket, tmp_path, monkeypatch):
    plain = extract_features(index, settings(), tmp_path / "plain")
    monkeypatch.setenv("XD3D_TEST_DEATHS", str(tmp_path / "a worker died"))
    monkeypatch.setattr(dask_cluster, "fill_task", deadly)
    url = new_bucket()
    shared = extract_with_workers(index, settings(), url, workers=2)
    assert (tmp_path / "a worker died").exists()
    assert (shared.images, shared.done, shared.failed) == (5, 4, 1)
    assert shared.fingerprint == plain.fingerprint
    assert objects(url) == files(tmp_path / "plain")


def test_a_bucket_that_is_not_there_is_named_before_a_worker_starts(settings, index, s3):
    with pytest.raises(StoreError, match="'nowhere'"):
        extract_with_workers(index, settings(), "s3://nowhere/cache", workers=1)


@pytest.mark.parametrize("profile", ["exact", pytest.param("compact", marks=pytest.mark.slow)])
def test_damage_in_a_bucket_is_dropped_and_extracted_again_to_the_bytes_there_were(
    settings, index, new_bucket, profile, monkeypatch
):
    chosen, url = settings(profile=profile), new_bucket()
    extract_features(index, chosen, url)
    sound = objects(url)
    for key in ("features/up1/zarr.json", "done/2.json"):
        replace(url, key, flipped(sound[key], len(sound[key]) // 2))
    first, second = (f"features/up{tap}/c/{shard}/0/0/0" for tap, shard in ((0, 0), (2, 2)))
    open_store(url).delete(first)
    replace(url, second, flipped(sound[second], 40))
    assert not verify_cache(url)["ok"]
    with pytest.raises(CacheError):
        FeatureReader(url)
    assert repair_cache(url) == {"dropped": 3, "metadata": ["features/up1/zarr.json"]}
    computed = []
    read = PictureSource.read
    monkeypatch.setattr(PictureSource, "read", lambda self, rows: computed.extend(rows) or read(self, rows))
    extract_features(index, chosen, url)
    assert sorted(computed) == [0, 1, 4]
    assert objects(url) == sound
    assert verify_cache(url)["ok"]
