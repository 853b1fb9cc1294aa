from dataclasses import replace

import pytest
from xd3d.cache.layout import CacheLayout
from xd3d.cache.schema import TapSpec
from xd3d.errors import CacheError


def test_every_tap_has_a_map_and_only_floating_taps_have_agents(layout):
    shapes = {name: (array.row_shape, array.dtype.name) for name, array in layout.arrays.items()}
    assert shapes == {
        "features/up1": ((6, 3, 5), "float16"),
        "features/rgb": ((3, 4, 7), "uint8"),
        "agents/up1": ((3, 6), "float16"),
        "agents/geometry": ((3, 5), "float32"),
    }
    assert layout.bytes_per_image == 180 + 84 + 36 + 60


def test_shards_cover_every_row_once_and_never_split_a_frame(layout):
    rows = [row for shard in layout.shards() for row in shard.rows]
    assert rows == list(range(layout.images))
    assert all(shard.first % layout.images_per_frame == 0 for shard in layout.shards())
    assert layout.shard_count == 5
    assert list(layout.shard(4).rows) == [16, 17]


@pytest.mark.parametrize(("shard_bytes", "images"), [(1, 2), (360 * 4, 4), (360 * 6 - 1, 4), (10**9, 18)])
def test_a_shard_holds_whole_frames_of_about_the_asked_size(layout, shard_bytes, images):
    assert CacheLayout.shard_images(layout.taps, layout.agents, layout.images, 2, shard_bytes) == images


def test_the_files_of_a_shard_follow_the_zarr_key_encoding(layout):
    assert layout.arrays["features/up1"].shard_file(3) == "features/up1/c/3/0/0/0"
    assert layout.arrays["agents/geometry"].shard_file(0) == "agents/geometry/c/0/0/0"


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".", "..", "/etc", "up 1", "up1\n", "geometry", "zarr.json", "c", "ü"]
)
def test_tap_names_that_could_leave_the_cache_are_refused(layout, name):
    tap = TapSpec(name=name, channels=1, height=1, width=1, extent=(1.0, 1.0))
    with pytest.raises(CacheError, match="tap name"):
        replace(layout, taps=(tap,))


@pytest.mark.parametrize("name", ["geometry", "zarr.json", "c"])
def test_tap_names_that_zarr_or_the_cache_uses_itself_are_refused(layout, name):
    tap = TapSpec(name=name, channels=1, height=1, width=1, extent=(1.0, 1.0))
    with pytest.raises(CacheError, match="tap name"):
        replace(layout, taps=(tap,))


@pytest.mark.parametrize("name", ["up0", "mid", "up1.0", "up2:residual", "rgb", "up1-hflip"])
def test_the_tap_addresses_of_a_unet_are_array_names(layout, name):
    tap = TapSpec(name=name, channels=1, height=1, width=1, extent=(1.0, 1.0))
    assert f"features/{name}" in replace(layout, taps=(tap,)).arrays


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "exakt"}, "did you mean 'exact'"),
        ({"agents": 0}, "agents of at least 1, found 0"),
        ({"image_keys": ()}, "at least one image"),
        ({"image_keys": ("a", "b", "a", "c")}, "only once"),
        ({"image_keys": ("a", "b", "c")}, "Frames of 2 images do not divide 3 images"),
        ({"images_per_shard": 3}, "shards of 3"),
        ({"agents": 10**9}, "limit"),
        ({"taps": ()}, "at least one tap"),
    ],
)
def test_contradicting_settings_are_refused_with_both_numbers(layout, changes, message):
    with pytest.raises(CacheError, match=message):
        replace(layout, **changes)


@pytest.mark.parametrize("extent", [(0.0, 5.0), (3.5, 5.0), (3.0, 5.1), (float("nan"), 5.0)])
def test_an_extent_outside_the_map_is_refused(layout, extent):
    with pytest.raises(CacheError, match="within the map"):
        replace(layout, taps=(replace(layout.taps[0], extent=extent),))
