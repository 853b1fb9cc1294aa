import numpy as np
import pytest
from numpy_encoder import write_shard
from xd3d.cache.commits import Commit
from xd3d.cache.export import export_cache
from xd3d.cache.layout import PROFILES
from xd3d.cache.reader import FeatureReader
from xd3d.cache.recipe import load_recipe
from xd3d.cache.stores import open_store
from xd3d.cache.verify import verify_cache
from xd3d.errors import CacheError, CacheMismatchError
from xd3d.fingerprint import fingerprint_digest


@pytest.mark.parametrize("profile", PROFILES)
def test_some_images_are_a_whole_cache_that_the_same_settings_read(
    tmp_path, open_writer, features_of_rows, profile, assert_same
):
    with open_writer(tmp_path / "cache", profile=profile, recipe={"dataset": "x"}) as writer:
        for shard in writer.pending_shards()[:4]:
            features = features_of_rows(shard.rows)
            features.maps["up1"][0, 0, 0, 0] = 1e6
            write_shard(writer, shard, features, {5: "dark"} if 5 in shard.rows else {})
    wanted = [f"image-{row:04d}" for row in (17, 4, 5, 8, 9)]
    told = export_cache(tmp_path / "cache", tmp_path / "out", images=wanted)
    assert (told["images"], told["left_out"], told["taps"]) == (4, 1, ["up1", "rgb"])
    assert verify_cache(tmp_path / "out") == {"ok": True, "images": 4, "checked": 4, "damaged": []}
    whole, part = FeatureReader(tmp_path / "cache"), FeatureReader(tmp_path / "out")
    assert part.layout.identity == whole.layout.identity
    assert part.layout.images_per_frame == 2
    assert part.image_keys == ("image-0004", "image-0005", "image-0008", "image-0009")
    assert part.failed == {1: "dark"}
    assert Commit.read(open_store(tmp_path / "out"), 0).clamped == {"features/up1": {0: 1, 2: 1}}
    by_key = FeatureReader(tmp_path / "out", expected=whole.layout.identity, keys=whole.image_keys)
    assert_same(by_key.read([9, 4, 8]), whole.read([9, 4, 8]))
    with pytest.raises(CacheError, match=r"'image-0000'.*holds 4 of 18"):
        by_key.read([0])
    with pytest.raises(CacheError, match=r"image-0005.*dark"):
        by_key.read([5])
    digest = fingerprint_digest(whole.fingerprint)
    assert load_recipe(open_store(tmp_path / "out")) == {"dataset": "x", "exported_from": digest}


def test_fewer_taps_are_read_by_a_config_that_names_the_cache_they_come_from(cache):
    out = cache.parent / "out"
    source = FeatureReader(cache)
    export_cache(cache, out, taps=["rgb"])
    part = FeatureReader(out)
    named = {**source.fingerprint, "taps": ["rgb"], "exported_from": fingerprint_digest(source.fingerprint)}
    assert part.fingerprint == named
    assert list(part.layout.arrays) == ["features/rgb", "agents/geometry"]
    np.testing.assert_array_equal(part.read([3]).maps["rgb"], source.read([3]).maps["rgb"])
    with pytest.raises(CacheMismatchError, match=r"exported_from: expected \(absent\)"):
        FeatureReader(out, expected={**source.fingerprint, "taps": ["rgb"]})
    FeatureReader(out, expected=named)


def test_a_tap_without_agents_may_go_and_the_rest_is_as_if_it_never_was(cache):
    out = cache.parent / "out"
    export_cache(cache, out, taps=["up1"])
    assert FeatureReader(out).fingerprint == {**FeatureReader(cache).fingerprint, "taps": ["up1"]}


def test_an_interrupted_export_resumes_and_another_one_is_refused(cache):
    out = cache.parent / "out"
    export_cache(cache, out)
    whole = {file: file.read_bytes() for file in out.rglob("*") if file.is_file() and "/c/" in str(file)}
    (out / "done/2.json").unlink()
    (out / "features/up1/c/0/0/0/0").unlink()
    export_cache(cache, out)
    assert {file: file.read_bytes() for file in whole} == whole
    assert verify_cache(out)["ok"]
    with pytest.raises(CacheMismatchError, match="images"):
        export_cache(cache, out, images=["image-0001"])


def test_what_is_not_there_or_damaged_is_named(cache):
    out = cache.parent / "out"
    with pytest.raises(CacheError, match=r"'up2':.*'up1'"):
        export_cache(cache, out, taps=["up2"])
    with pytest.raises(CacheError, match="such as 'image-1'"):
        export_cache(cache, out, images=["image-1", "image-0001"])
    file = cache / "features/up1/c/1/0/0/0"
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CacheError, match=r"image-0004.*cache repair"):
        export_cache(cache, out)
