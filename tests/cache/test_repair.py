"""A repair drops what is damaged; the writer that made the cache then brings back the bytes there were."""

import random
import shutil

import pytest
from numpy_encoder import write_shard
from xd3d.cache.export import export_cache
from xd3d.cache.maintenance import repair_cache
from xd3d.cache.reader import FeatureReader
from xd3d.cache.verify import verify_cache
from xd3d.errors import CacheError, CacheMismatchError

RECIPE = {"dataset": "nuscenes", "extract": {}}


@pytest.fixture
def refill(open_writer, features_of_rows):
    """Write the pending shards of a small cache; returns their numbers."""

    def write(path, **changes):
        with open_writer(path, recipe=RECIPE, **changes) as writer:
            pending = writer.pending_shards()
            for shard in pending:
                write_shard(writer, shard, features_of_rows(shard.rows), {5: "dark"} if 5 in shard.rows else {})
        return [shard.index for shard in pending]

    return write


@pytest.fixture
def made(tmp_path, refill):
    """A complete cache of five shards with a recipe and a failed image."""
    refill(tmp_path / "made")
    return tmp_path / "made"


def tree(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "writer.lock" and file.parent.name != "locks"
    }


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 4
    file.write_bytes(data)


def test_a_flipped_bit_in_every_kind_of_file_comes_back_and_sound_shards_are_kept(made, refill):
    sound, rng = tree(made), random.Random(5)
    damaged = [name for name in sound if "/c/2/" not in name and "/c/4/" not in name and name[:6] != "done/2"]
    damaged = [name for name in damaged if name not in {"zarr.json", "images.json", "done/4.json"}]
    for name in damaged:
        flip(made / name, rng.randrange(len(sound[name])))
    with pytest.raises(CacheError):
        FeatureReader(made)
    done = repair_cache(made)
    assert done["dropped"] == 12
    assert done["metadata"] == sorted(n for n in damaged if "/c/" not in n and not n.startswith("done/"))
    assert not FeatureReader(made).available[:8].any()
    assert verify_cache(made) == {"ok": True, "images": 18, "checked": 6, "damaged": []}
    assert refill(made) == [0, 1, 3]
    assert tree(made) == sound


@pytest.mark.parametrize("name", ["zarr.json", "images.json"])
def test_a_damaged_manifest_is_written_again_by_the_same_settings_and_refused_for_others(made, refill, name):
    sound = tree(made)
    flip(made / name, 400 if name == "zarr.json" else 30)
    assert repair_cache(made) == {"dropped": 0, "metadata": ["zarr.json"]}
    before = tree(made)
    with pytest.raises(CacheMismatchError, match="--set"):
        refill(made, fingerprint={"model": "another"})
    assert tree(made) == before
    assert refill(made) == []
    assert tree(made) == sound


def test_a_lost_manifest_of_format_1_is_written_again_as_format_1(made, refill, layout):
    sound = tree(made)
    (made / "zarr.json").unlink()
    assert refill(made, grid=layout.taps[0]) == []
    assert tree(made) == sound


def test_records_lost_from_a_finished_cache_count_and_those_of_an_unfinished_one_do_not(made, refill):
    sound = tree(made)
    (made / "done/1.json").unlink()
    assert repair_cache(made) == {"dropped": 4, "metadata": []}
    assert verify_cache(made)["checked"] == 14
    assert repair_cache(made) == {"dropped": 0, "metadata": []}
    assert refill(made) == [1]
    assert tree(made) == sound


def test_shards_deleted_cut_swapped_and_stale_are_dropped(made, refill):
    sound = tree(made)
    up1, rgb = made / "features/up1/c", made / "features/rgb/c"
    (up1 / "0/0/0/0").unlink()
    (up1 / "1/0/0/0").write_bytes(b"")
    swapped = (rgb / "2/0/0/0").read_bytes()
    shutil.copy(rgb / "3/0/0/0", rgb / "2/0/0/0")
    (rgb / "3/0/0/0").write_bytes(swapped)
    assert repair_cache(made)["dropped"] == 16
    assert refill(made) == [0, 1, 2, 3]
    assert tree(made) == sound


def test_a_dropped_shard_of_an_export_is_exported_again(made, tmp_path):
    keys = [f"image-{row:04d}" for row in range(6)]
    export_cache(made, tmp_path / "part", images=keys)
    sound = tree(tmp_path / "part")
    flip(tmp_path / "part/features/up1/c/1/0/0/0", 3)
    assert repair_cache(tmp_path / "part") == {"dropped": 2, "metadata": []}
    export_cache(made, tmp_path / "part", images=keys)
    assert tree(tmp_path / "part") == sound


def test_a_cache_of_another_version_or_in_use_or_behind_a_link_is_untouched(made, open_writer, tmp_path):
    with pytest.raises(CacheError, match="xd3d extract-features"):
        repair_cache(tmp_path / "nothing")
    with open_writer(made, recipe=RECIPE), pytest.raises(CacheError, match="Another writer"):
        repair_cache(made)
    flip(made / "done/0.json", 30)
    shutil.move(made / "done", tmp_path / "outside")
    (made / "done").symlink_to(tmp_path / "outside")
    kept = tree(tmp_path / "outside")
    with pytest.raises(CacheError, match="link"):
        repair_cache(made)
    assert tree(tmp_path / "outside") == kept
