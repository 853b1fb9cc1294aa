"""Views of an image: mirrored and jittered pictures, their keys, and where they lie in a cache."""

import numpy as np
import pytest
from xd3d.cache.reader import FeatureReader
from xd3d.cache.verify import cache_info, verify_cache
from xd3d.stages.extract.fingerprint import feature_fingerprint
from xd3d.stages.extract.forecast import forecast
from xd3d.stages.extract.images import apply_view
from xd3d.stages.extract.job import extract_features
from xd3d.stages.extract.online import OnlineExtractor

VIEWS = ("identity", "hflip", "jitter:1")


@pytest.fixture
def picture():
    coarse = np.random.default_rng(4).integers(40, 216, (3, 6, 8), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def test_a_mirrored_picture_exchanges_left_and_right(picture):
    flipped = apply_view(picture, "hflip", "a")
    np.testing.assert_array_equal(flipped[:, :, 0], picture[:, :, -1])
    np.testing.assert_array_equal(apply_view(flipped, "hflip", "a"), picture)
    assert apply_view(picture, "identity", "a") is picture


def test_jitter_depends_on_the_key_and_the_number_only(picture):
    jittered = apply_view(picture, "jitter:1", "a")
    assert (jittered.shape, jittered.dtype) == (picture.shape, np.uint8)
    np.testing.assert_array_equal(jittered, apply_view(picture.copy(), "jitter:1", "a"))
    others = [apply_view(picture, "jitter:2", "a"), apply_view(picture, "jitter:1", "b")]
    assert not any(np.array_equal(jittered, other) for other in [picture, *others])
    # the bytes that any machine gets: caches made on several of them agree
    assert int(jittered.astype(np.int64).sum()) == 1_570_560


def test_jitter_changes_colours_as_much_as_it_says(picture):
    drawn = np.stack([apply_view(picture, f"jitter:{k}", "a") for k in range(200)]).astype(np.float64)
    brightness = drawn.mean((1, 2, 3)) / picture.mean()
    assert 0.55 < brightness.min() < 0.75
    assert 1.2 < brightness.max() < 1.45
    assert abs(brightness.mean() - 1) < 0.05
    moved = np.abs(drawn - picture).mean((1, 2, 3))
    assert moved.min() > 1


def test_the_hue_turns_both_ways_and_grey_stays_grey():
    grey = np.full((3, 4, 4), 128, np.uint8)
    red = np.zeros((3, 4, 4), np.uint8)
    red[0] = 200
    green = []
    for k in range(50):
        same = apply_view(grey, f"jitter:{k}", "a")
        assert (same == same[0]).all()
        turned = apply_view(red, f"jitter:{k}", "a").astype(int)
        green.append(turned[1, 0, 0] - turned[2, 0, 0])
    assert min(green) < -10
    assert max(green) > 10


@pytest.mark.parametrize("cameras", [1, 2])
def test_a_cache_with_views_holds_the_identity_unchanged_and_each_view_beside_it(
    settings, make_index, tmp_path, cameras
):
    index = make_index(2, cameras)
    plain, varied = settings(batch_size=1), settings(batch_size=1, views=VIEWS)
    images = 2 * cameras
    assert forecast(index, varied, tmp_path / "views").images == 3 * images
    summary = extract_features(index, varied, tmp_path / "views")
    extract_features(index, plain, tmp_path / "plain")
    assert (summary.images, summary.done, cache_info(tmp_path / "views")["images"]) == (3 * images,) * 3
    assert verify_cache(tmp_path / "views")["ok"]
    reader, single = FeatureReader(tmp_path / "views"), FeatureReader(tmp_path / "plain")
    assert (reader.views, single.views) == (VIEWS, ("identity",))
    assert reader.image_keys[:4] == ("image0-0", "image0-0#hflip", "image0-0#jitter:1", "image0-1")
    assert reader.layout.images_per_frame == 3 * cameras
    stored, alone = reader.read(range(0, 3 * images, 3)), single.read(range(images))
    for name, values in alone.maps.items():
        np.testing.assert_array_equal(stored.maps[name], values)
    np.testing.assert_array_equal(stored.geometry, alone.geometry)
    flipped = reader.read([1])
    assert not np.array_equal(flipped.geometry, alone.geometry[:1])
    inner = alone.maps["rgb"][0][:, :, ::-1]  # 180 pixels are 45 cells of 4: the mirrored cells cover the same pixels
    np.testing.assert_array_equal(flipped.maps["rgb"][0], inner)
    online = OnlineExtractor(index=index, settings=varied)
    rows = [5, 0, 3, 1, 2]
    for name, values in online.read(rows).maps.items():
        np.testing.assert_array_equal(reader.read(rows).maps[name], values)


def test_an_image_that_cannot_be_decoded_fails_in_every_view(settings, make_index, tmp_path):
    index = make_index(2)
    (index.root / "images/1.png").write_bytes(b"no picture")
    summary = extract_features(index, settings(views=VIEWS), tmp_path / "cache")
    assert (summary.done, summary.failed) == (3, 3)
    assert sorted(FeatureReader(tmp_path / "cache").failed) == [3, 4, 5]


def test_the_fingerprint_of_identity_alone_is_that_of_earlier_caches(settings, make_index):
    from xd3d.fingerprint import fingerprint_digest

    fields = feature_fingerprint(settings(), make_index(1))
    later = {"unet", "draws", "noise"}
    assert len(fields) == 13
    assert not later & fields.keys()
    assert fields["views"] == ["identity"]
    assert len(fingerprint_digest(fields)) == 64
