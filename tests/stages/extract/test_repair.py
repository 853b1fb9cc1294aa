"""Any damage to a cache is mended to the bytes it had, and only what was damaged is computed again."""

import random
import shutil

import pytest
from xd3d.cache.layout import PROFILES
from xd3d.cache.reader import FeatureReader
from xd3d.cache.verify import verify_cache
from xd3d.errors import CacheError, CacheMismatchError
from xd3d.stages.extract.extractor import FeatureExtractor
from xd3d.stages.extract.images import PictureSource
from xd3d.stages.extract.job import extract_features
from xd3d.stages.extract.repair import repair_features

SHARD = 3


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Let a few tiny images fill several shards."""
    from xd3d.cache.layout import CacheLayout

    monkeypatch.setattr(CacheLayout, "shard_images", staticmethod(lambda _t, _a, images, _f, _b: min(SHARD, images)))


@pytest.fixture
def made(settings, make_index, tmp_path):
    """Index, settings and a cache of eight images in three shards, the second image of which is no picture."""

    def make(**changes):
        index, chosen, path = make_index(8), settings(**changes), tmp_path / "cache"
        broken = index.root / str(index.images.path[1])
        broken.write_bytes(b"no picture")
        extract_features(index, chosen, path)
        return index, chosen, path

    return make


def tree(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "writer.lock" and file.parent.name != "locks"
    }


def flip(file, position, bit=0):
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_flipped_bit_in_every_kind_of_file_is_mended_to_the_bytes_there_were(made, profile):
    index, settings, path = made(profile=profile)
    sound = tree(path)
    rng = random.Random(5)
    damaged = [name for name in sound if "/c/2/" not in name and not name.startswith(("done/1", "done/2"))]
    for name in damaged:
        data = sound[name]
        place = len(data) - rng.randrange(1, 52) if "/c/1/" in name else rng.randrange(len(data))
        flip(path / name, place, rng.randrange(8))
    assert not verify_cache(path)["ok"]
    with pytest.raises(CacheError):
        FeatureReader(path)
    done = repair_features(index, settings, path)
    assert (done.ok, done.repaired, done.failed) == (True, 5, 1)
    assert sorted(done.metadata) == [name for name in damaged if "/c/" not in name and not name.startswith("done/")]
    assert tree(path) == sound
    assert verify_cache(path)["ok"]


@pytest.mark.parametrize("lost", [("1",), ("0", "1", "2")])
def test_lost_commit_records_of_a_finished_cache_are_mended_and_of_an_unfinished_one_left(made, lost):
    index, settings, path = made()
    sound = tree(path)
    for number in lost:
        (path / f"done/{number}.json").unlink()
    assert not verify_cache(path)["ok"]
    done = repair_features(index, settings, path)
    assert (done.ok, done.repaired + done.failed, done.failed) == (True, 8 if len(lost) == 3 else 3, len(lost) // 3)
    assert tree(path) == sound
    (path / "finished.json").unlink()
    (path / "done/1.json").unlink()
    assert repair_features(index, settings, path).repaired == 0
    assert verify_cache(path)["checked"] == 5


def test_shards_deleted_emptied_cut_swapped_and_stale_are_mended(made, settings, make_index, tmp_path):
    index, chosen, path = made()
    sound = tree(path)
    other = tmp_path / "other"
    extract_features(index, settings(agents={"count": 12, "rounds": 1}), other)
    up0, up1, up2, up3 = (path / f"features/{tap}/c" for tap in ("up0", "up1", "up2", "up3"))
    (up0 / "0/0/0/0").unlink()
    (up1 / "1/0/0/0").write_bytes(b"")
    (up2 / "2/0/0/0").write_bytes((up2 / "2/0/0/0").read_bytes()[:-30])
    swapped = (up3 / "0/0/0/0").read_bytes()
    shutil.copy(up3 / "1/0/0/0", up3 / "0/0/0/0")
    (up3 / "1/0/0/0").write_bytes(swapped)
    shutil.copy(other / "agents/up1/c/2/0/0", path / "agents/up1/c/2/0/0")
    shutil.copy(other / "done/2.json", path / "done/2.json")
    for row in (0, 3, 7):
        with pytest.raises(CacheError):
            FeatureReader(path).read([row])
    done = repair_features(index, chosen, path)
    assert (done.ok, done.repaired, done.failed) == (True, 7, 1)
    assert tree(path) == sound


def test_only_batches_with_damaged_rows_are_computed_and_failed_images_stay_so(made, monkeypatch):
    index, settings, path = made()
    sound = tree(path)
    computed = []
    read = PictureSource.read
    monkeypatch.setattr(PictureSource, "read", lambda self, rows: computed.extend(rows) or read(self, rows))
    flip(path / "features/up1/c/0/0/0/0", len((path / "features/up1/c/0/0/0/0").read_bytes()) // 3 * 2 + 8)  # row 2
    done = repair_features(index, settings, path)
    assert (done.repaired, done.failed, done.metadata) == (1, 0, [])
    assert computed == [2]  # a batch of two images, cut by the shard's end
    assert tree(path) == sound
    assert FeatureReader(path).failed.keys() == {1}


def test_a_sound_cache_is_left_alone_and_no_model_is_loaded(made, monkeypatch):
    index, settings, path = made()
    sound = tree(path)

    def refuse(*_args, **_kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(FeatureExtractor, "__init__", refuse)
    assert repair_features(index, settings, path).metadata == []
    (path / "features/up1/zarr.json").write_text("{}")
    (path / "images.json").unlink()
    (path / "zarr.json").write_text("[]")
    done = repair_features(index, settings, path)
    assert (done.ok, done.repaired) == (True, 0)
    assert sorted(done.metadata) == ["features/up1/zarr.json", "images.json", "zarr.json"]
    assert tree(path) == sound


def test_other_settings_are_refused_with_the_field_even_where_the_manifest_is_lost(made, settings):
    index, _, path = made()
    flip(path / "features/up1/c/0/0/0/0", 3)
    damaged = tree(path)
    with pytest.raises(CacheMismatchError, match=r"agents\.rounds: expected 4, found 3"):
        repair_features(index, settings(agents={"count": 12, "rounds": 4}), path)
    (path / "zarr.json").unlink()
    with pytest.raises(CacheMismatchError, match="other settings"):
        repair_features(index, settings(agents={"count": 12, "rounds": 4}), path)
    assert tree(path) == {name: data for name, data in damaged.items() if name != "zarr.json"}


def test_an_image_that_is_gone_by_now_is_recorded_as_failed(made):
    index, settings, path = made()
    flip(path / "features/up1/c/2/0/0/0", 3)
    (index.root / str(index.images.path[6])).unlink()
    done = repair_features(index, settings, path)
    assert (done.ok, done.repaired, done.failed) == (True, 0, 1)
    assert "missing" in FeatureReader(path).failed[6]
    FeatureReader(path).read([7])


def test_a_repair_never_writes_through_a_link(made, tmp_path):
    index, settings, path = made()
    outside = tmp_path / "outside"
    shutil.move(path / "features/up1/c", outside)
    (path / "features/up1/c").symlink_to(outside)
    flip(outside / "0/0/0/0", 3)
    kept = tree(outside)
    with pytest.raises(CacheError, match="link"):
        repair_features(index, settings, path)
    assert tree(outside) == kept
