import json

from xd3d.cache.info import cache_info
from xd3d.cache.reader import FeatureReader
from xd3d.fingerprint import fingerprint_digest

ARRAYS = ["features/up1", "features/rgb", "agents/up1", "agents/geometry"]


def test_info_counts_images_and_bytes_from_the_records(tmp_path, open_writer, features_of_rows):
    with open_writer(tmp_path) as writer:
        for shard in writer.pending_shards()[:2]:
            writer.write_shard(shard, features_of_rows(shard.rows), {5: "dark"} if 5 in shard.rows else {})
    info = cache_info(tmp_path)
    assert list(info) == ["cache", "fingerprint", "images", "done", "failed", "bytes", "bytes_per_image", "arrays"]
    assert (info["cache"], info["images"], info["done"], info["failed"]) == (str(tmp_path), 18, 7, 1)
    assert info["fingerprint"] == fingerprint_digest(FeatureReader(tmp_path).fingerprint)
    shards = [file for name in ARRAYS for file in (tmp_path / name / "c").rglob("*") if file.is_file()]
    assert info["bytes"] == sum(file.stat().st_size for file in shards)
    assert info["bytes_per_image"] == info["bytes"] / 8
    assert info["arrays"]["features/up1"] == {"shape": [18, 6, 3, 5], "dtype": "float16", "bytes": 2 * (4 * 180 + 68)}
    assert list(info["arrays"]) == ARRAYS
    assert json.loads(json.dumps(info)) == info


def test_an_empty_cache_forecasts_its_bytes_an_image(tmp_path, open_writer):
    open_writer(tmp_path).close()
    info = cache_info(tmp_path)
    assert (info["done"], info["bytes"], info["bytes_per_image"]) == (0, 0, 360)
