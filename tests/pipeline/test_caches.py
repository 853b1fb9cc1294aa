"""Looking after a cache from the command line: damage is refused by training, named, mended; parts are exported."""

import json

from xd3d.cache.maintenance import diff_caches
from xd3d.cache.verify import verify_cache

SMALL = ("--set", "extract.image_size=[64,112]", "--set", "extract.taps=[up1,up2,rgb]", "--set", "extract.shard_mb=1")


def told(done, code=0):
    assert done.returncode == code, (done.stdout, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def test_damage_is_refused_by_training_and_repaired_by_a_bare_repair_and_parts_are_exported(xd3d, city, tmp_path):
    told(xd3d("prepare", "--root", str(city), "--json"))
    path = tmp_path / told(xd3d("extract-features", *SMALL, "--json"))["cache"]
    shards = sorted((path / "features/up1/c").glob("*/*/*/*"))
    sound = {shard: shard.read_bytes() for shard in shards}
    manifest = (path / "zarr.json").read_bytes()
    for shard, data in sound.items():
        shard.write_bytes(data[:7] + bytes([data[7] ^ 2]) + data[8:])
    done = xd3d("train", "--cached", *SMALL, "--set", "train.steps=1", "--set", "model.preset=slim")
    assert done.returncode == 1
    assert f"xd3d cache verify {path}" in done.stderr
    named = verify_cache(path)["damaged"]
    assert {fault["file"] for fault in named} == {str(shard.relative_to(path)) for shard in shards}
    (path / "zarr.json").unlink()
    assert told(xd3d("cache", "repair", str(path), "--json")) == {"dropped": 0, "metadata": ["zarr.json"]}
    told(xd3d("extract-features", *SMALL, "--json"))
    assert (path / "zarr.json").read_bytes() == manifest
    assert told(xd3d("cache", "repair", str(path), "--json")) == {"dropped": 22, "metadata": []}
    told(xd3d("extract-features", *SMALL, "--json"))
    assert {shard: shard.read_bytes() for shard in shards} == sound

    (path / "done/0.json").unlink()
    done = xd3d("cache", "verify", str(path))
    assert done.returncode == 1
    assert "done/0.json: the cache was finished" in done.stdout
    assert " of 22 images are committed and were checked, 1 faults" in done.stdout
    told(xd3d("extract-features", *SMALL, "--json"))
    assert "22 of 22 images are committed and were checked, 0 faults" in xd3d("cache", "verify", str(path)).stdout

    part = told(xd3d("cache", "export", str(path), "part", "--split", "source-train", "--json"))
    assert 0 < part["images"] < 22
    differ = diff_caches(path, tmp_path / "part")
    assert len(differ["images"]["only_first"]) == 22 - part["images"]
    assert not any(differ["rows"].values())
    (path / "staging/left.partial").write_bytes(bytes(10))
    assert told(xd3d("cache", "gc", "--json"))["bytes"] == 10
    assert not (path / "staging/left.partial").exists()

    (path / "recipe.jsonl").unlink()
    done = xd3d("cache", "export", str(path), "scenes", "--scenes", "a")
    assert done.returncode == 1
    assert "--dataset NAME" in done.stderr
