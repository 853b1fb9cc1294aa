"""A cache in a bucket is verified, exported, compared and rid of its litter like one in a folder."""

from xd3d.cache.export import export_cache
from xd3d.cache.maintenance import collect_garbage, diff_caches
from xd3d.cache.stores import open_store
from xd3d.cache.verify import verify_cache


def test_a_cache_in_a_bucket_is_looked_after_like_one_in_a_folder(new_bucket, cache, tmp_path):
    bucket = new_bucket()
    told = export_cache(cache, f"{bucket}/part", images=[f"image-{row:04d}" for row in range(8)])
    assert told["images"] == 8
    assert verify_cache(f"{bucket}/part", quick=True) == {"ok": True, "images": 8, "checked": 8, "damaged": []}
    export_cache(f"{bucket}/part", tmp_path / "back")
    assert diff_caches(f"{bucket}/part", tmp_path / "back")["equal"]
    store = open_store(f"{bucket}/part")
    stage = store.stage("nobody")
    stage.write("features/up1/c/77/0/0/0", lambda file: file.write(b"stray"))
    stage.write("done/77.json", lambda file: file.write(b"{}"))
    stage.publish()
    assert [entry["file"] for entry in collect_garbage(f"{bucket}/part")["files"]] == [
        "done/77.json",
        "features/up1/c/77/0/0/0",
    ]
    assert verify_cache(f"{bucket}/part") == {"ok": True, "images": 8, "checked": 8, "damaged": []}
    assert not store.exists("done/77.json")
