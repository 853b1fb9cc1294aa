"""A cache of the profile ``compact``: everything an exact one does, in half the bytes."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import zarr
from numpy_encoder import as_stored, encode, write_shard
from xd3d.cache.codec import E4M3
from xd3d.cache.layout import CacheLayout
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import CHANNEL_AXES, TapSpec, named_arrays
from xd3d.cache.verify import cache_info, verify_cache
from xd3d.errors import CacheError, CacheMismatchError

CODED = ["features/up1", "agents/up1"]
NAMES = [*CODED, "scales/features/up1", "scales/agents/up1", "features/rgb", "agents/geometry"]


@pytest.fixture
def compact(tmp_path, open_writer, features_of_rows):
    """The small cache in the profile ``compact``, complete."""
    with open_writer(tmp_path / "compact", profile="compact") as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, features_of_rows(shard.rows), {})
    return tmp_path / "compact"


def expected(features):
    """The arrays that a compact cache gives of computed features."""
    arrays = named_arrays(features)
    for name in CODED:
        codes, scales = encode(as_stored(arrays[name], np.dtype("f2")), CHANNEL_AXES[name.partition("/")[0]])
        arrays |= {name: codes, f"scales/{name}": scales}
    return arrays


def test_rows_come_back_as_codes_and_scales_and_as_zarr_reads_them(compact, features_of_rows):
    rows = [17, 3, 4, 5, 3]
    read = named_arrays(FeatureReader(compact).read(rows))
    assert sorted(read) == sorted(NAMES)
    stored = zarr.open(compact, mode="r")
    for name, values in expected(features_of_rows(rows)).items():
        np.testing.assert_array_equal(read[name], values)
        np.testing.assert_array_equal(stored[name][:][rows], values)
        assert read[name].dtype == stored[name].dtype == values.dtype


@pytest.mark.parametrize("name", CODED)
def test_each_array_of_codes_says_how_a_stranger_reads_it(compact, features_of_rows, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open(compact, mode="r")
        members = dict(group.members(max_depth=None))
    assert {member for member, node in members.items() if isinstance(node, zarr.Array)} == set(NAMES)
    scales = group[group[name].attrs["scales"]][:].astype(np.float32)
    spread = (18, -1, 1, 1) if name == "features/up1" else (18, 1, -1)
    value = group[name].attrs["value"]
    assert value == "float8_e4m3fn(code) * scales[image, 0, channel] + scales[image, 1, channel]"
    values = E4M3[group[name][:]] * scales[:, 0].reshape(spread) + scales[:, 1].reshape(spread)
    features = features_of_rows(range(18))
    computed = (features.maps if name == "features/up1" else features.agents)["up1"]
    np.testing.assert_allclose(values, computed, rtol=0.08, atol=0.1)


def test_a_compact_cache_of_stable_diffusion_takes_half_the_bytes():
    taps = [
        TapSpec(name=f"up{i}", channels=c, height=h, width=w, extent=(float(h), float(w)))
        for i, (c, h, w) in enumerate([(1280, 4, 7), (1280, 8, 13), (640, 15, 25), (320, 29, 50)])
    ]
    rgb = TapSpec(name="rgb", channels=3, height=57, width=100, extent=(57.0, 100.0), dtype="uint8")
    facts = {"image_keys": ("a",), "images_per_frame": 1, "images_per_shard": 1, "fingerprint": {}}
    exact = CacheLayout(taps=(*taps, rgb), agents=100, **facts)
    assert replace(exact, profile="compact").bytes_per_image <= 0.52 * exact.bytes_per_image


def test_verify_and_info_know_every_array(compact):
    assert verify_cache(compact) == {"ok": True, "images": 18, "checked": 18, "damaged": []}
    assert sorted(cache_info(compact)["arrays"]) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit_is_refused_and_found(compact, name):
    reader = FeatureReader(compact)
    file = compact / reader.layout.arrays[name].shard_file(2)
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    with pytest.raises(CacheError, match=rf"'image-0008' \(row 8\).*array {name}, file.*crc32c"):
        reader.read([8])
    assert [(fault["image"], fault["array"]) for fault in verify_cache(compact)["damaged"]] == [("image-0008", name)]


def test_failed_images_are_zero_everywhere_and_clamps_are_counted(tmp_path, open_writer, features_of_rows):
    features = features_of_rows(range(4))
    features.maps["up1"][1, 2, 0, :3] = 1e6
    with open_writer(tmp_path, profile="compact") as writer:
        commit = write_shard(writer, writer.layout.shard(0), features, {2: "dark"})
        pending = [shard.index for shard in writer.pending_shards()]
    assert commit.clamped == {"features/up1": {1: 3}}
    assert pending == [1, 2, 3, 4]
    stored = zarr.open(tmp_path, mode="r")
    assert not any(stored[name][2].any() for name in NAMES)
    assert FeatureReader(tmp_path).read([1]).scales["features/up1"].max() <= 65504


def test_the_other_profile_is_refused_by_name_when_reading_and_when_resuming(cache, compact, open_writer):
    fingerprint = dict(FeatureReader(cache).fingerprint)
    for path, found, wanted in ((cache, "exact", "compact"), (compact, "compact", "exact")):
        line = f'profile: expected "{wanted}", found "{found}"'
        asked = fingerprint if wanted == "exact" else {**fingerprint, "profile": "compact"}
        with pytest.raises(CacheMismatchError) as caught:
            FeatureReader(path, expected=asked)
        assert str(caught.value).splitlines()[1:-1] == [f"  {line}"]
        with pytest.raises(CacheMismatchError) as caught:
            open_writer(path, profile=wanted)
        assert str(caught.value).splitlines()[1:-1] == [f"  {line}"]


def test_buffers_hold_the_scales_of_the_taps_that_are_wanted(compact, features_of_rows):
    reader = FeatureReader(compact)
    out = reader.allocate(3, taps=["up1"])
    assert sorted(named_arrays(out)) == sorted({*NAMES} - {"features/rgb"})
    reader.read([4, 1], out.first(2))
    for name, values in named_arrays(out.first(2)).items():
        np.testing.assert_array_equal(values, expected(features_of_rows([4, 1]))[name])
    assert list(reader.allocate(1, taps=["rgb"]).scales) == []


def test_shards_hold_the_same_images_in_either_profile(compact, cache):
    assert FeatureReader(compact).layout.images_per_shard == FeatureReader(cache).layout.images_per_shard
