"""Point files of every kind give the same points; damaged ones are named with what was found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from xd3d.errors import DataError, MissingDataError
from xd3d.stages.datasets.raw_columns import COLUMNS, RawRows, are_doubles, guess_columns, stored_by_columns
from xd3d.stages.datasets.sweeps import Sweep, load_sweep, points_fault, raw_fault, sweep_suffix

POINTS = np.random.default_rng(4).normal(0, 30, (20, 5)).astype(np.float32)

WRITERS: dict[str, Callable[[Path], object]] = {
    "kitti.bin": lambda path: POINTS[:, :4].tofile(path),
    "nuscenes.pcd.bin": lambda path: POINTS.tofile(path),
    "upper.PCD.BIN": lambda path: POINTS.tofile(path),
    "array.npy": lambda path: np.save(path, POINTS[:, :3].astype(np.float64)),
    "wide.npy": lambda path: np.save(path, POINTS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_points(tmp_path, name):
    WRITERS[name](tmp_path / name)
    points = load_sweep(tmp_path / name).points
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, POINTS[:, :3])


def test_columns_win_over_the_suffix(tmp_path):
    POINTS.tofile(tmp_path / "stf.bin")
    np.testing.assert_array_equal(load_sweep(tmp_path / "stf.bin", columns=5).points, POINTS[:, :3])


def test_coordinates_come_as_stored_and_the_usable_ones_are_reported(tmp_path):
    points = POINTS[:, :3].astype(np.float64)
    points[2, 1], points[5, 0], points[7, 2] = np.nan, -np.inf, 1e300
    np.save(tmp_path / "a.npy", points)
    assert np.flatnonzero(~load_sweep(tmp_path / "a.npy").usable).tolist() == [2, 5, 7]


def test_doubles_far_from_the_origin_stay_doubles(tmp_path):
    points = POINTS[:, :3] + np.array([456123.0, 5412345.0, 112.0])
    np.save(tmp_path / "far.npy", points)
    sweep = load_sweep(tmp_path / "far.npy")
    np.testing.assert_array_equal(sweep.points, points)
    assert sweep.usable.all()
    for dtype in (np.float32, np.float64):  # as stored, and as a reader of text returns it
        np.save(tmp_path / "rounded.npy", points.astype(np.float32).astype(dtype))
        assert "5.412e+06 m in float32, in steps of 0.5 m" in load_sweep(tmp_path / "rounded.npy").fault()


@pytest.mark.parametrize("columns", [3, 4, 5, 6, 8])
@pytest.mark.parametrize("suffix", [".bin", ".pcd.bin"])
def test_the_values_of_a_raw_file_tell_its_columns(tmp_path, columns, suffix):
    rng = np.random.default_rng(1)
    street = np.column_stack([rng.uniform(-40, 40, 6000), rng.uniform(-10, 10, 6000), rng.uniform(-2, 3, 6000)])
    rest = [rng.uniform(0, 255, 6000), rng.integers(0, 32, 6000), rng.normal(0, 5, 6000), np.zeros(6000), np.ones(6000)]
    rows = np.column_stack([street, *rest])[:, :columns].astype(np.float32)
    rows.tofile(tmp_path / f"a{suffix}")
    sweep = load_sweep(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(sweep.points, rows[:, :3])
    assert sweep.guessed == (None if columns == COLUMNS[suffix] else RawRows(columns))
    rows.ravel()[:-1].tofile(tmp_path / f"cut{suffix}")
    with pytest.raises(DataError, match=f"of {4 * columns}"):
        load_sweep(tmp_path / f"cut{suffix}")


def test_the_columns_of_real_sweeps_are_those_of_their_suffix(real_nuscenes):
    (sweep,) = (real_nuscenes / "samples/LIDAR_TOP").glob("*.bin")
    assert load_sweep(sweep).guessed is None
    five = load_sweep(sweep).points
    assert guess_columns(np.fromfile(sweep, np.float32), 4) == 5
    assert guess_columns(np.column_stack([five, five[:, 0] * 0 + 0.3]).ravel(), 5) == 4


def test_a_few_points_kilometres_from_all_others_are_stray_and_a_cloud_in_millimetres_is_not_taken(tmp_path):
    points = np.random.default_rng(0).normal(0, 20, (2000, 4)).astype(np.float32)
    points[7, 0], points[9, 2] = 90_000, -40_000
    points.tofile(tmp_path / "a.bin")
    sweep = load_sweep(tmp_path / "a.bin")
    assert np.flatnonzero(~sweep.usable).tolist() == [7, 9]
    assert sweep.fault() is None
    (points * 1000).tofile(tmp_path / "b.bin")
    assert "must be in metres" in load_sweep(tmp_path / "b.bin").fault()


UTM = np.array([456123.0, 5412345.0, 112.0, 0, 0])


def street(points=6000, columns=4, seed=1):
    """Rows of x, y, z, intensity, ring, as doubles with random bits."""
    rng = np.random.default_rng(seed)
    x, y, z = rng.uniform(-40, 40, points), rng.uniform(-10, 10, points), rng.uniform(-2, 3, points)
    return np.column_stack([x, y, z, rng.uniform(0, 1, points), rng.integers(0, 32, points)])[:, :columns]


@pytest.mark.parametrize("columns", [3, 4, 5])
@pytest.mark.parametrize(
    "change",
    [
        np.array,
        np.float32,
        lambda rows: rows.round(2),
        lambda rows: rows.round(),
        lambda rows: rows + UTM[: rows.shape[1]],
    ],
)
def test_doubles_in_a_raw_file_are_told_by_their_values(tmp_path, columns, change):
    rows = change(street(columns=columns)).astype("<f8")
    rows[np.random.default_rng(0).random(len(rows)) < 0.1, :3] = np.nan
    rows.tofile(tmp_path / "a.bin")
    sweep = load_sweep(tmp_path / "a.bin")
    np.testing.assert_array_equal(sweep.points, rows[:, :3].astype(sweep.points.dtype))
    assert sweep.guessed == RawRows(columns, "float64")
    assert "float64" in str(raw_fault(tmp_path / "a.bin", RawRows(4)))
    with pytest.raises(DataError, match=r"float64.*astype.*dtype: float64"):
        load_sweep(tmp_path / "a.bin", columns=4, dtype="float32")


@pytest.mark.parametrize("columns", [3, 4, 5])
@pytest.mark.parametrize(
    "change", [np.array, lambda rows: rows * 0.01, lambda rows: rows.round(), lambda rows: rows * 0]
)
def test_single_precision_is_not_taken_for_doubles(columns, change):
    rows = change(street(columns=columns)).astype("<f4")
    assert not are_doubles(rows.ravel())
    rows[::3, :3] = np.nan
    assert not are_doubles(rows.ravel())
    rows[: len(rows) // 2] = 0
    assert not are_doubles(rows.ravel())


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("columns", [3, 4, 5])
def test_a_raw_file_stored_column_by_column_is_refused_and_the_advised_conversion_mends_it(tmp_path, columns, dtype):
    rows, path = street(columns=columns).astype(dtype), tmp_path / "a.bin"
    rows.T.tofile(path)
    known = {"columns": columns, "dtype": np.dtype(dtype).name}
    with pytest.raises(DataError, match=r"np\.fromfile") as refused:
        load_sweep(path, **known)
    assert str(path) in str(raw_fault(path, RawRows(**known)))
    eval(str(refused.value).partition("numpy: ")[2], {"np": np, "NAME": path})
    np.testing.assert_array_equal(load_sweep(path, **known).points, rows[:, :3].astype(np.float32))


def test_real_sweeps_are_told_from_the_same_stored_column_by_column(real_data):
    for path in sorted(real_data.rglob("*.bin")):
        columns = COLUMNS[sweep_suffix(path)]
        values = np.fromfile(path, "<f4")
        if "lidarseg" not in str(path) and len(values) % columns == 0:
            assert not stored_by_columns(values, columns), path
            assert stored_by_columns(values.reshape(-1, columns).T.ravel(), columns), path


def test_real_sweeps_are_no_doubles(real_data):
    for path in sorted(real_data.rglob("*.bin")):
        if "lidarseg" not in str(path):
            assert not are_doubles(np.fromfile(path, "<f4")), path


@pytest.mark.parametrize("far", [0.0, 5e6])
def test_missing_returns_at_zero_are_no_points_and_a_few_zeros_are(tmp_path, far):
    points = street()[:, :3] + far
    np.save(tmp_path / "a.npy", points)
    points[:4] = 0
    if not far:  # far from all others they are stray
        np.save(tmp_path / "a.npy", points)
        assert load_sweep(tmp_path / "a.npy").usable.all()
    points[::2] = 0
    np.save(tmp_path / "a.npy", points)
    sweep = load_sweep(tmp_path / "a.npy")
    np.testing.assert_array_equal(sweep.usable, points.any(axis=1))
    remark = points_fault(lambda: load_sweep(tmp_path / "a.npy"))
    assert (remark.number, remark.dropped) == (3002, 3002)
    assert "(0, 0, 0)" in remark.what
    points[:4000] = 0  # sensors that look at the sky
    np.save(tmp_path / "a.npy", points)
    assert load_sweep(tmp_path / "a.npy").fault() is None
    points[:5900] = 0
    np.save(tmp_path / "a.npy", points)
    assert "all but 50 of its 6000" in load_sweep(tmp_path / "a.npy").fault()


@pytest.mark.parametrize("value", [(-1, -1, -1), (0, 0, 0.25), (-9999, -9999, -9999), (1e9, 1e9, 1e9)])
def test_a_point_that_very_many_rays_share_stands_for_missing_returns(value):
    points = street()[:, :3]
    points[::5] = value
    sweep = Sweep.of(points)
    np.testing.assert_array_equal(sweep.usable, np.arange(len(points)) % 5 != 0)
    assert sweep.fault() is None
    remark = points_fault(lambda: sweep)
    assert (remark.number, remark.dropped) == (1200, 1200)
    assert f"({', '.join(f'{number:g}' for number in value)})" in remark.what


def test_real_sweeps_have_no_missing_returns(real_data):
    """nuScenes, KITTI and PandaSet leave them out; measured returns must not be taken for them."""
    for path in sorted(real_data.rglob("*.bin")):
        if "lidarseg" not in str(path):
            assert load_sweep(path).usable.all(), path


def test_an_unknown_kind_names_those_that_are_known(tmp_path):
    assert sweep_suffix(Path("cloud.e57")) == ""
    with pytest.raises(DataError, match=r"cloud\.e57 .*\.pcd\.bin, \.bin, \.npy, \.ply"):
        load_sweep(tmp_path / "cloud.e57")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingDataError, match=r"a\.bin is missing"):
        load_sweep(tmp_path / "a.bin")


def npy(header: str) -> bytes:
    """An array file with this header and little behind it."""
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n" + b"\0" * 12


def test_a_file_that_the_system_does_not_hand_out_is_named(tmp_path):
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(DataError, match=r"a\.bin.*\(Is.*directory\)"):
        load_sweep(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"", "is empty"),
        ("a.bin", b"\0" * 17, "17 bytes, not a multiple of 16"),
        ("a.pcd.bin", b"\0" * 16, "16 bytes, not a multiple of 20"),
        ("a.npy", b"", "cannot be read as a plain array"),
        ("a.npy", b"PK\x03\x04 something else", "cannot be read as a plain array"),
        (
            "a.npy",
            npy("{'descr': ',f4', 'fortran_order': False, 'shape': (1, 3), }"),
            "cannot be read as a plain array",
        ),
        (
            "a.npy",
            npy("('descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }"),
            "cannot be read as a plain array",
        ),
        ("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 3), }"), "plain array"),
    ],
)
def test_damage_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_sweep(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 2), np.float32), r"\[4, 2\] of float32"),
        (np.zeros(12, np.float32), r"\[12\] of float32"),
        (np.zeros((4, 3), "U2"), r"\[4, 3\] of <U2"),
        (np.array([[{}, {}, {}]], object), "cannot be read as a plain array"),
        (np.zeros((0, 3), np.float32), "holds no point"),
        (np.zeros((4, 100), np.float32), r"\[4, 100\], with a point per column; save its transpose"),
    ],
)
def test_arrays_that_are_no_points_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        load_sweep(tmp_path / "a.npy")


def test_an_archive_of_arrays_is_no_sweep(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.savez(file, points=POINTS)
    with pytest.raises(DataError, match="archive of arrays"):
        load_sweep(tmp_path / "a.npy")
