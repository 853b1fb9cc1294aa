from dataclasses import replace

import numpy as np
import pytest
from xd3d.cache.rows import arrays_of, features_of, non_finite_rows, stored_rows
from xd3d.errors import CacheError

ROWS = range(10, 12)


def test_values_beyond_float16_are_clamped_and_counted_by_row(layout):
    values = np.zeros((2, 6, 3, 5), np.float32)
    values[1, 0, 0] = [1e6, -1e6, 65504, 65505, 500]
    clamped = {}
    rows = list(stored_rows(values, layout.arrays["features/up1"], ROWS, {}, clamped))
    assert rows[1][0, 0].tolist() == [65504, -65504, 65504, 65504, 500]
    assert clamped == {11: 3}
    assert {row.dtype for row in rows} == {np.dtype(np.float16)}


def test_geometry_keeps_float32(layout):
    values = np.full((2, 3, 5), 1 / 3, np.float32)
    rows = list(stored_rows(values, layout.arrays["agents/geometry"], ROWS, {}, {}))
    np.testing.assert_array_equal(rows[0], values[0])


def test_rows_in_any_memory_order_are_stored_alike(layout):
    values = np.random.default_rng(0).standard_normal((5, 3, 6, 2)).astype(np.float32).T
    plain, strided = (
        list(stored_rows(v, layout.arrays["features/up1"], ROWS, {}, {}))
        for v in (np.ascontiguousarray(values.transpose(0, 1, 2, 3)), values)
    )
    assert [row.tobytes() for row in plain] == [row.tobytes() for row in strided]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_row_with_nan_or_infinity_is_unfit_and_the_place_is_named(features_of_rows, layout, wrong, dtype):
    arrays = {
        n: v if v.dtype == np.uint8 else v.astype(dtype)
        for n, v in arrays_of(features_of_rows(ROWS), layout, 2).items()
    }
    arrays["agents/up1"][1, 2, 4] = wrong
    assert non_finite_rows(arrays, ROWS) == {11: "agents/up1 is not finite: 1 values, the first at [2, 4]"}


def test_features_and_named_arrays_are_the_same_thing(features_of_rows, layout):
    features = features_of_rows(range(2))
    again = features_of(arrays_of(features, layout, 2))
    assert again.maps.keys() == features.maps.keys()
    assert again.agents.keys() == features.agents.keys()
    assert again.geometry is features.geometry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: replace(f, agents={}), r"missing \['agents/up1'\]"),
        (lambda f: replace(f, maps={**f.maps, "up9": f.maps["up1"]}), r"not expected \['features/up9'\]"),
        (
            lambda f: replace(f, maps={**f.maps, "up1": f.maps["up1"][:, :, :2]}),
            r"features/up1 is float32 \(2, 6, 2, 5\)",
        ),
        (lambda f: replace(f, maps={**f.maps, "rgb": f.maps["rgb"].astype(np.float32)}), "stores uint8"),
        (lambda f: replace(f, maps={**f.maps, "up1": f.maps["up1"].astype(np.int16)}), "is int16"),
    ],
)
def test_features_that_do_not_fit_are_refused(features_of_rows, layout, change, message):
    with pytest.raises(CacheError, match=message):
        arrays_of(change(features_of_rows(range(2))), layout, 2)
