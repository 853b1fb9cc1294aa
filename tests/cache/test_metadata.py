import hashlib
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import zarr
from xd3d.cache.layout import CacheLayout
from xd3d.cache.metadata import load_layout, manifest_checksum, metadata_files
from xd3d.cache.reader import FeatureReader
from xd3d.cache.stores.local import LocalStore
from xd3d.errors import CacheError
from xd3d.fingerprint import canonical_json


def edit(file, change):
    """Change the JSON of ``file`` in place."""
    value = json.loads(file.read_text())
    file.write_text(json.dumps(change(value) or value))


def edit_manifest(cache, change):
    """Change the manifest and sign it again, as somebody who means harm would."""

    def changed(group):
        facts = group["attributes"]["xd3d_cache"]
        change(facts)
        del facts["checksum"]
        facts["checksum"] = hashlib.sha256(canonical_json(facts).encode()).hexdigest()

    edit(cache / "zarr.json", changed)


def test_a_layout_comes_back_as_it_was_written(cache, layout):
    loaded = load_layout(LocalStore(root=cache))
    assert loaded == layout
    assert manifest_checksum(loaded) == manifest_checksum(layout)


def test_integers_for_an_extent_and_tuples_in_a_fingerprint_change_nothing_on_the_way(tmp_path, layout):
    tap = replace(layout.taps[0], extent=tuple(np.float64(v) for v in (2.0, 5.0)))
    given = replace(layout, taps=(tap,), fingerprint={"size": (1, 2)})
    for name, data in metadata_files(given).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert manifest_checksum(load_layout(LocalStore(root=tmp_path))) == manifest_checksum(given)


def test_zarr_itself_would_describe_the_arrays_in_the_same_words(tmp_path, layout):
    for name, array in layout.arrays.items():
        zarr.create_array(
            tmp_path / name,
            shape=(layout.images, *array.row_shape),
            chunks=(1, *array.row_shape),
            shards=(layout.images_per_shard, *array.row_shape),
            dtype=array.dtype,
            compressors=None,
            fill_value=0,
            dimension_names=array.dimensions,
        )
        assert json.loads(metadata_files(layout)[f"{name}/zarr.json"]) == json.loads(
            (tmp_path / name / "zarr.json").read_text()
        )


def test_a_plain_zarr_reader_lists_the_arrays_without_a_warning(cache, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open(cache, mode="r")
        members = dict(group.members(max_depth=None))
    assert {name for name, node in members.items() if isinstance(node, zarr.Array)} == set(layout.arrays)
    assert group.attrs["xd3d_cache"]["fingerprint"] == layout.fingerprint


def test_many_image_keys_stay_out_of_the_attributes(layout):
    keys = tuple(f"{row:032x}" for row in range(20_000))
    files = metadata_files(replace(layout, image_keys=keys))
    assert len(files["zarr.json"]) < 20_000
    assert json.loads(files["images.json"]) == list(keys)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["taps"][0].update(name="../../x"),
        lambda m: m["taps"][0].update(name=["up1"]),
        lambda m: m["taps"][0].update(channels=10**12),
        lambda m: m["taps"][0].update(channels=-1),
        lambda m: m["taps"][0].update(channels=True),
        lambda m: m["taps"][0].update(channels=6.0),
        lambda m: m["taps"][0].update(dtype="object"),
        lambda m: m["taps"][0].update(extent=[1]),
        lambda m: m["taps"][0].pop("height"),
        lambda m: m.update(taps={"up1": 1}),
        lambda m: m.update(taps=[]),
        lambda m: m.update(agents=10**30),
        lambda m: m.update(agents=0),
        lambda m: m.update(images=10**9),
        lambda m: m.update(images_per_shard=0),
        lambda m: m.update(images_per_shard=10**9),
        lambda m: m.update(images_per_frame=5),
        lambda m: m.update(profile="zip"),
        lambda m: m.update(fingerprint=None),
        lambda m: m.update(image_keys=None),
        lambda m: m.pop("images_per_frame"),
        lambda m: m.update(format=2),
        lambda m: m.update(format=None),
    ],
)
def test_a_hostile_manifest_is_a_cache_error_even_when_its_checksum_is_right(cache, change):
    edit_manifest(cache, change)
    with pytest.raises(CacheError):
        FeatureReader(cache)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "{}", '{"attributes": 3}', "[" * 100_000, "\udcff"])
@pytest.mark.parametrize("name", ["zarr.json", "images.json", "features/up1/zarr.json"])
def test_metadata_that_is_no_metadata_is_a_cache_error(cache, name, text):
    (cache / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CacheError):
        FeatureReader(cache)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [10**18, 6, 3, 5]),
        ("shape", [18, 6, 3]),
        ("shape", "18"),
        ("data_type", "float64"),
        ("data_type", "object"),
        ("data_type", None),
        ("zarr_format", 2),
        ("zarr_format", True),
        ("node_type", "group"),
    ],
)
def test_an_array_that_contradicts_the_manifest_is_refused_with_both_values(cache, key, value):
    edit(cache / "features/up1/zarr.json", lambda m: m.update({key: value}))
    with pytest.raises(CacheError, match=rf"zarr.json .*{key}: expected .*, found "):
        FeatureReader(cache)


@pytest.mark.parametrize("key", ["shape", "data_type", "zarr_format", "node_type"])
def test_a_missing_key_of_an_array_is_a_cache_error(cache, key):
    edit(cache / "agents/up1/zarr.json", lambda m: m.pop(key) and None)
    with pytest.raises(CacheError, match=key):
        FeatureReader(cache)


def test_a_folder_without_a_cache_says_how_to_make_one(tmp_path):
    with pytest.raises(CacheError, match="xd3d extract-features"):
        load_layout(LocalStore(root=tmp_path))


def test_another_format_number_names_both(cache):
    edit_manifest(cache, lambda m: m.update(format=3))
    with pytest.raises(CacheError, match=r"format 3.*reads 1 and 2"):
        load_layout(LocalStore(root=cache))


def test_a_manifest_of_format_2_names_the_grid(cache):
    edit_manifest(cache, lambda m: m.update(format=2))
    with pytest.raises(CacheError, match="is damaged"):
        load_layout(LocalStore(root=cache))


def test_layouts_with_the_same_facts_are_equal(layout):
    assert replace(layout) == layout
    assert isinstance(layout, CacheLayout)
