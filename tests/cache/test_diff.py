import json
from dataclasses import replace

from numpy_encoder import write_shard
from xd3d.cache.maintenance import diff_caches


def write(path, open_writer, features_of_rows, change=lambda shard, features: features, **settings):
    with open_writer(path, **settings) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, change(shard, features_of_rows(shard.rows)), {})
    return path


def test_equal_caches_are_equal_whatever_their_shards(cache, tmp_path, open_writer, features_of_rows):
    other = write(tmp_path / "other", open_writer, features_of_rows, shard_bytes=4000)
    told = diff_caches(cache, other)
    assert told["equal"]
    assert json.loads(json.dumps(told)) == told


def test_fields_images_arrays_and_rows_that_differ_are_named(cache, tmp_path, open_writer, features_of_rows):
    def brighter(shard, features):
        up1 = features.maps["up1"].copy()
        if shard.index == 1:
            up1[2] += 0.5  # row 6
        return replace(features, maps={"up1": up1})

    keys = [f"image-{row:04d}" for row in range(2, 20)]
    other = tmp_path / "other"
    with open_writer(other, fingerprint={"model": "another"}, image_keys=keys) as writer:
        taps = writer.layout.taps
    assert len(taps) == 2
    third = write(
        tmp_path / "third",
        open_writer,
        features_of_rows,
        brighter,
        taps=taps[:1],
        fingerprint={"model": "another"},
        shard_bytes=4 * 276,
    )
    told = diff_caches(cache, third)
    assert not told["equal"]
    assert told["fingerprint"][-1] == 'model: expected "tiny-street", found "another"'
    assert told["arrays"] == {"only_first": ["features/rgb"], "only_second": []}
    assert told["rows"]["features/up1"] == ["image-0006"]
    assert told["rows"]["agents/up1"] == []
    told = diff_caches(cache, other)
    assert told["images"] == {"only_first": ["image-0000", "image-0001"], "only_second": ["image-0018", "image-0019"]}
    assert len(told["readable"]["only_first"]) == 18


def test_arrays_of_another_type_are_not_compared(cache, tmp_path, open_writer, features_of_rows):
    other = write(tmp_path / "other", open_writer, features_of_rows, profile="compact")
    told = diff_caches(cache, other)
    assert told["fingerprint"] == ['profile: expected "exact", found "compact"']
    assert told["rows"] == {"features/rgb": [], "agents/geometry": []}
