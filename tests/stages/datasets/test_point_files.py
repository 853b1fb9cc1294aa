"""PCL, LAS and LAZ files and ROS 2 bags, as their own libraries write them, and what is damaged of them."""

import json
import struct
import sys

import numpy as np
import pytest
from xd3d.errors import ConfigError, DataError, MissingDataError
from xd3d.stages.datasets.folder import build_index, check_files
from xd3d.stages.datasets.frames import load_frame
from xd3d.stages.datasets.labels import index_merge
from xd3d.stages.datasets.ros_bags import list_clouds
from xd3d.stages.datasets.sweeps import load_sweep
from xd3d.stages.predict.sweeps import find_sweeps, label_path

POINTS = np.random.default_rng(0).normal(0, 30, (40, 3)).astype(np.float32)
UTM = np.array([456123.0, 5412345.0, 112.0])
LABELS = np.arange(40) % 3

DEFINITION = """std_msgs/Header header
uint32 height
uint32 width
sensor_msgs/PointField[] fields
bool is_bigendian
uint32 point_step
uint32 row_step
uint8[] data
bool is_dense
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
================================================================================
MSG: sensor_msgs/PointField
string name
uint32 offset
uint8 datatype
uint32 count
"""


def write_pcd(encoding):
    def write(path, points=POINTS):
        head = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z label\nSIZE 4 4 4 4\nTYPE F F F U\nCOUNT 1 1 1 1\n"
        head += f"WIDTH {len(points)}\n"
        head += f"HEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA {encoding}\n"
        rows = np.rec.fromarrays([*points.T, LABELS.astype("u4")], names="x,y,z,label")
        if encoding == "ascii":
            body = "\n".join(" ".join(map(str, row)) for row in rows.tolist()).encode()
        elif encoding == "binary":
            body = rows.tobytes()
        else:  # a reference of its own: literal runs of LZF, which is how it stores what does not compress
            raw = b"".join(np.ascontiguousarray(rows[name]).tobytes() for name in rows.dtype.names)
            runs = [raw[first : first + 32] for first in range(0, len(raw), 32)]
            packed = b"".join(bytes([len(run) - 1]) + run for run in runs)
            body = struct.pack("<II", len(packed), len(raw)) + packed
        path.write_bytes(head.encode() + body)

    return write


def write_las(path, points=POINTS):
    laspy = pytest.importorskip("laspy")
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.offsets, header.scales = np.floor(points.min(0)), np.full(3, 1e-4)
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = points.astype(np.float64).T
    cloud.classification = LABELS.astype(np.uint8)
    cloud.write(str(path))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.pcd", write_pcd("ascii")),
        ("a.pcd", write_pcd("binary")),
        ("a.PCD", write_pcd("binary_compressed")),
        ("a.las", write_las),
        ("a.laz", write_las),
    ],
)
def test_points_are_those_that_were_written_and_a_cut_file_is_named(tmp_path, name, write):
    pytest.importorskip("pypcd4")
    write(tmp_path / name)
    np.testing.assert_allclose(load_sweep(tmp_path / name).points, POINTS, atol=1e-4)
    content = (tmp_path / name).read_bytes()
    for share in (0.2, 0.5, 0.9):
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
        with pytest.raises(DataError, match=name):
            load_sweep(tmp_path / name)


def test_projected_coordinates_of_a_survey_stay_doubles(tmp_path):
    write_las(tmp_path / "a.laz", POINTS + UTM)
    np.testing.assert_allclose(load_sweep(tmp_path / "a.laz").points, POINTS + UTM, atol=1e-4)


@pytest.mark.parametrize(("suffix", "write"), [(".pcd", write_pcd("binary")), (".laz", write_las)])
def test_a_folder_of_them_has_its_labels_in_the_same_files(tmp_path, suffix, write):
    pytest.importorskip("pypcd4")
    (tmp_path / "scans").mkdir()
    write(tmp_path / f"scans/a{suffix}")
    about = {"sweeps": f"scans/{{frame}}{suffix}", "labels": f"scans/{{frame}}{suffix}", "classes": {"x": 1, "y": 2}}
    (tmp_path / "dataset.yaml").write_text(json.dumps(about))
    index = build_index(tmp_path)
    assert check_files(index) == []
    np.testing.assert_array_equal(
        load_frame(index, 0, index_merge("folder", index)).labels, np.array([-100, 0, 1])[LABELS]
    )


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.pcd").touch()
    monkeypatch.setitem(sys.modules, "pypcd4", None)
    with pytest.raises(ConfigError, match=r"pip install 'xd3d\[sweeps\]'"):
        load_sweep(tmp_path / "a.pcd")


def cloud_message(points, *, order="<"):
    """An organised cloud of two rows with padding between points and rows."""
    rows = np.zeros(
        (2, len(points) // 2), np.dtype({"names": list("xyz"), "formats": [order + "f4"] * 3, "itemsize": 20})
    )
    for axis, name in enumerate("xyz"):
        rows[name] = points[:, axis].reshape(2, -1)
    data = b"".join(row.tobytes() + b"pad!" for row in rows)
    header = {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": "lidar"}
    fields = [{"name": name, "offset": 4 * axis, "datatype": 7, "count": 1} for axis, name in enumerate("xyz")]
    step = rows.shape[1] * 20 + 4
    return {
        **{"header": header, "height": 2, "width": rows.shape[1], "fields": fields, "is_bigendian": order == ">"},
        **{"point_step": 20, "row_step": step, "data": list(data), "is_dense": True},
    }


@pytest.fixture
def bag(tmp_path):
    writer_of = pytest.importorskip("mcap_ros2.writer")
    path = tmp_path / "bags/drive.mcap"
    path.parent.mkdir()
    with path.open("wb") as file:
        writer = writer_of.Writer(file)
        clouds = writer.register_msgdef("sensor_msgs/msg/PointCloud2", DEFINITION)
        text = writer.register_msgdef("std_msgs/msg/String", "string data")
        for time in range(3):
            writer.write_message("/notes", text, {"data": "hello"}, log_time=1000 + time)
            order = "<>"[time % 2]
            writer.write_message("/lidar/top", clouds, cloud_message(POINTS + time, order=order), log_time=1000 + time)
        writer.finish()
    return path


@pytest.mark.parametrize(("step", "cut"), [(0, 0), (7, 0), (0, 1)])
def test_a_driver_that_writes_a_wrong_length_of_rows_is_forgiven_where_the_points_are_all_there(tmp_path, step, cut):
    path = tmp_path / "a.mcap"
    message = cloud_message(POINTS)
    size = message["row_step"] - 4
    packed = message["data"][:size] + message["data"][size + 4 : -4]
    with path.open("wb") as file:
        writer = pytest.importorskip("mcap_ros2.writer").Writer(file)
        clouds = writer.register_msgdef("sensor_msgs/msg/PointCloud2", DEFINITION)
        writer.write_message("/top", clouds, {**message, "row_step": step, "data": packed[cut:]}, log_time=1)
        writer.finish()
    if cut:
        with pytest.raises(DataError, match=f"{len(packed) - 1} bytes.* 2 rows of"):
            load_sweep(path / "top-1")
    else:
        np.testing.assert_array_equal(load_sweep(path / "top-1").points, POINTS)


def test_a_bag_is_a_folder_of_its_clouds(bag, tmp_path):
    assert list_clouds(bag) == ["lidar_top-1000", "lidar_top-1001", "lidar_top-1002"]
    for given in (bag, bag.parent):
        sweeps = find_sweeps(given)
        for time, sweep in enumerate(sweeps):
            np.testing.assert_array_equal(load_sweep(sweep).points, POINTS + time)
    assert label_path(tmp_path, sweeps[2]).name == "drive-lidar_top-1002.label"
    with pytest.raises(MissingDataError, match="lidar_top-7"):
        load_sweep(bag / "lidar_top-7")


def test_the_clouds_of_bags_are_frames_of_a_folder(bag, tmp_path):
    (tmp_path / "ids/drive").mkdir(parents=True)
    for time in range(3):
        LABELS.astype("<u4").tofile(tmp_path / f"ids/drive/lidar_top-{1000 + time}.label")
    about = {"sweeps": "bags/{scene}.mcap/{frame}", "labels": "ids/{scene}/{frame}.label", "classes": {"x": 1}}
    (tmp_path / "dataset.yaml").write_text(json.dumps(about))
    index = build_index(tmp_path)
    assert index.frames.key.tolist() == [f"drive/lidar_top-{1000 + time}" for time in range(3)]
    assert check_files(index) == []
    frame = load_frame(index, 1, index_merge("folder", index))
    np.testing.assert_array_equal(frame.points, POINTS + 1)
    assert (frame.labels == 0).sum() == (LABELS == 1).sum()


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_a_damaged_bag_is_named(bag, share):
    content = bag.read_bytes()
    bag.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"drive\.mcap"):
        list_clouds(bag)
