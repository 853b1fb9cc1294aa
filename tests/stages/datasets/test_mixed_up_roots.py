"""Roots that a person mixed up or a download left damaged: the file is named, with what it should be and the remedy."""

import json
import os
import pickle
import re
import shutil
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from xd3d.errors import DataError, MissingDataError
from xd3d.stages.datasets.prepare import prepare_dataset


def complaint(dataset: str, root: Path, folder: Path) -> str:
    """What ``prepare`` says of a root, as an error or as a list of faults; no index appears."""
    try:
        said = "\n".join(map(str, prepare_dataset(dataset, root, folder / "index").missing))
    except (DataError, MissingDataError) as error:
        said = str(error)
    assert not (folder / "index").exists()
    return said


def latin1(path: Path) -> None:
    path.write_bytes("Stra\xdfe: 1 2 3\n".encode("latin-1"))


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def text(content: str):
    return lambda path: path.write_text(content)


def values(change):
    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def view(**changes):
    return values(lambda content: content["cameras"]["front_center"].update(changes))


def raw(value: int, dtype: str):
    """A label file whose last label is ``value``."""

    def edit(path: Path) -> None:
        labels = np.fromfile(path, dtype)
        labels[-1] = value
        labels.tofile(path)

    return edit


def rewritten(dtype: str):
    """A label file whose numbers, without instances, are of another type."""
    return lambda path: (np.fromfile(path, "<u4") & 0xFFFF).astype(dtype).tofile(path)


def widened(columns: int):
    """A sweep of KITTI with more columns, in as many bytes as whole points of four."""

    def edit(path: Path) -> None:
        points = np.fromfile(path, "<f4").reshape(-1, 4)[:2000]
        np.c_[points, np.tile(np.arange(len(points)) % 64, (columns - 4, 1)).T].astype("<f4").tofile(path)

    return edit


class Trap:
    """What leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def trap(path: Path) -> None:
    """An array of objects, in the format of the file."""
    array = np.array([Trap()], object)
    if path.suffix == ".npz":
        np.savez(path, points=array, row=np.zeros(1), col=np.zeros(1))
    else:
        np.save(path, array, allow_pickle=True)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


def array(values: np.ndarray):
    return lambda path: np.save(path, values)


def archive(**shapes: tuple[int, ...]):
    return lambda path: np.savez(path, **{name: np.zeros(shape) for name, shape in shapes.items()})


def grey(path: Path) -> None:
    with Image.open(path) as image:
        size = image.size
    Image.new("L", size).save(path)


def huge(path: Path) -> None:
    """A PNG whose header asks for 30 GB."""
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    start = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    path.write_bytes(start + path.read_bytes()[33:])


KITTI, STF = "dataset/sequences/00", "val/val.txt"
A2D2 = "20180807_145028"
DEPTH, COLOURS = "vkitti_1.3.1_depthgt/0001/clone", "vkitti_1.3.1_scenegt/0001_clone_scenegt_rgb_encoding.txt"

FAULTS = [
    ("semantickitti", f"{KITTI}/calib.txt", folder, "is not a file; unpack data_odometry_calib.zip again"),
    ("semantickitti", f"{KITTI}/calib.txt", pipe, "is not a file; unpack data_odometry_calib.zip again"),
    ("semantickitti", f"{KITTI}/image_2/*.png", huge, "cannot be opened .*; unpack"),
    ("semantickitti", f"{KITTI}/image_2/*.png", pipe, "the image is missing; unpack"),
    (
        "semantickitti",
        f"{KITTI}/labels/*.label",
        raw(53 | 7 << 16, "<u4"),
        "1 labels that are not ids of .*, such as 53",
    ),
    (
        "semantickitti",
        f"{KITTI}/labels/*.label",
        rewritten("<f4"),
        "are of float32, and uint32 are expected",
    ),
    ("semantickitti", "dataset/sequences/11/velodyne/*.bin", widened(5), "repeat after 5 numbers, and 4 per point"),
    ("semantickitti", f"{KITTI}/labels/*.label", rewritten(">u4"), "label file are in big-endian order"),
    (
        "synlidar",
        "00/labels/*.label",
        raw(33, "<u4"),
        "1 labels that are not ids of .*, such as 33; .*another data set",
    ),
    ("semanticstf", "val/labels/*.label", raw(21, "<u4"), "not ids of .*, such as 21"),
    ("nuscenes", "lidarseg/*/*.bin", raw(32, "u1"), "not ids of .*, such as 32"),
    (
        "synlidar",
        "00/velodyne/*.bin",
        lambda path: path.rename(path.with_suffix(".npy")),
        r"missing \(there is \w+\.npy\)",
    ),
    ("semanticstf", STF, latin1, "is not text .*github.com/xiaoaoran/SemanticSTF"),
    ("semanticstf", STF, empty, "names no weather for 4 of 4 frames"),
    ("semanticstf", STF, folder, "is not a file; get this list"),
    ("a2d2", "cams_lidars.json", folder, "is not a file; download cams_lidars.json again"),
    ("a2d2", "cams_lidars.json", text("[1]"), "holds a list instead of an object; download"),
    ("a2d2", "cams_lidars.json", text('{"cameras": []}'), "is damaged .*; download"),
    ("a2d2", "cams_lidars.json", deep, "is not JSON .*; download"),
    ("a2d2", "cams_lidars.json", view(CamMatrix=[[0, 0, 1]] * 3), "CamMatrix cannot be inverted"),
    ("a2d2", "cams_lidars.json", view(CamMatrix=[[10**400, 0, 0]] * 3), "is damaged .*; download"),
    ("a2d2", "cams_lidars.json", view(Resolution=[float("inf"), 10]), "is damaged .*; download"),
    ("a2d2", "class_list.json", folder, "is not a file; unpack"),
    ("a2d2", f"{A2D2}/lidar/*/*.npz", trap, r"points, row, col \(Object arrays .*; copy it again"),
    (
        "a2d2",
        f"{A2D2}/lidar/*/*.npz",
        archive(points=(4, 3), row=(4,), col=(3,)),
        r"points \[4, 3\] .* row \[4\] .* col \[3\]",
    ),
    ("a2d2", f"{A2D2}/lidar/*/*.npz", archive(points=(0, 3), row=(0,), col=(0,)), r"points \[0, 3\] of"),
    ("a2d2", f"{A2D2}/lidar/*/*.npz", pipe, "the LiDAR file is missing"),
    ("virtualkitti", "vkitti3d_npy/0001/*.npy", trap, "cannot be read .*Object.*; make it again"),
    ("virtualkitti", "vkitti3d_npy/0001/*.npy", pickled, "cannot be read .*; make it again"),
    ("virtualkitti", "vkitti3d_npy/0001/*.npy", array(np.zeros((0, 7))), r"shape \[0, 7\]"),
    ("virtualkitti", "vkitti3d_npy/0001/*.npy", array(np.full((3, 7), "1")), "not .* of numbers"),
    ("virtualkitti", "vkitti3d_npy/0001/*.npy", text("PK\3\4" + "x" * 50), "cannot be read"),
    ("depth", f"{DEPTH}/*.png", grey, "pixels of type L, not 16 bits; unpack"),
    ("depth", COLOURS, latin1, "is not text .*; unpack vkitti_1.3.1_scenegt again"),
    ("depth", COLOURS, text("Category r g b\nCar 300 0 0\n"), "is not a class with red, green and blue; unpack"),
    ("folder", "dataset.yaml", latin1, "is not text .*; write it again"),
    ("folder", f"{KITTI}/calib.txt", latin1, "is not text"),
    ("nuscenes", "v1.0-trainval/log.json", latin1, "is not valid JSON .*; unpack the metadata again"),
    ("nuscenes", "v1.0-trainval/scene.json", text("[[1]]"), "a row is a list instead of an object"),
    ("nuscenes", "v1.0-trainval/scene.json", deep, "is not valid JSON"),
    ("nuscenes", "v1.0-trainval/lidarseg.json", text("[]"), "lidarseg.json names no label file for 18 of 18 keyframes"),
]


@pytest.mark.parametrize(("dataset", "pattern", "damage", "words"), FAULTS)
def test_a_fault_is_named_with_its_remedy(copy_of, tmp_path, monkeypatch, dataset, pattern, damage, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as the nuScenes devkit leaves it
    root = copy_of("virtualkitti" if dataset == "depth" else dataset)
    if dataset == "depth":
        (root / "vkitti3d_npy").rename(tmp_path / "elsewhere")
        dataset = "virtualkitti"
    path = next(iter(sorted(root.glob(pattern))))
    damage(path)
    said = complaint(dataset, root, tmp_path)
    assert path.name in said
    assert re.search(words, said), said
    assert not (tmp_path / "unpickled").exists()


def table(name: str, change):
    def edit(root: Path) -> None:
        values(change)(root / f"v1.0-trainval/{name}.json")

    return edit


TABLES = [
    ("sample", lambda rows: rows.append(rows[0]), "sample.json has two rows with the token 'sample-"),
    ("scene", lambda rows: rows.append(rows[0]), "scene.json has two rows with the token"),
    (
        "sample_data",
        lambda rows: rows.append({**rows[1], "token": "new"}),
        "two keyframe records of CAM_FRONT in sample",
    ),
    ("sample_data", lambda rows: rows[1].update(sample_token="lost"), "sample.json has no row with the token 'lost'"),
    ("sample_data", lambda rows: rows[1].update(ego_pose_token="lost"), "ego_pose.json has no row .* 'lost'"),
    ("sample", lambda rows: rows[0].update(scene_token="lost"), "scene.json has no row .* 'lost'"),
    ("scene", lambda rows: rows[0].update(log_token=["lost"]), "are inconsistent"),
    ("sample_data", lambda rows: rows[1].update(filename="samples/a\0b"), "in sample_data.json is invalid"),
    ("sample_data", lambda rows: rows[1].update(filename="samples/\ud800"), "in sample_data.json is invalid"),
    ("sample_data", lambda rows: rows[1].update(filename="samples/" + "x" * 5000), "cannot be read .* again"),
    ("sample_data", lambda rows: rows[1].update(width=float("inf")), "are inconsistent .* infinity"),
    ("calibrated_sensor", lambda rows: rows[1].update(camera_intrinsic=[[1, 2], [3]]), "are inconsistent"),
    ("calibrated_sensor", lambda rows: rows[1].update(camera_intrinsic=[[0] * 3] * 3), "CAM_FRONT .* is damaged"),
    ("calibrated_sensor", lambda rows: rows[1].update(rotation=[float("inf"), 0, 0, 0]), "CAM_FRONT .* is damaged"),
    ("calibrated_sensor", lambda rows: rows[1].update(camera_intrinsic=[[1e200] * 3] * 3), "CAM_FRONT .* is damaged"),
    ("calibrated_sensor", lambda rows: rows[1].update(rotation=[0, 0, 0, 0]), "CAM_FRONT .* cannot be inverted"),
    ("ego_pose", lambda rows: rows[0].update(rotation=[1, 0]), "are inconsistent"),
    ("lidarseg", lambda rows: rows[0].update(filename=None), "lidarseg.json .* is damaged"),
]


@pytest.mark.parametrize(("name", "change", "words"), TABLES)
def test_tables_that_say_strange_things_are_named(copy_of, tmp_path, name, change, words):
    root = copy_of("nuscenes")
    table(name, change)(root)
    said = complaint("nuscenes", root, tmp_path)
    assert re.search(words, said), said


def test_the_folder_of_labels_is_no_root_though_it_has_folders_of_versions(copy_of, tmp_path):
    root = copy_of("nuscenes")
    (root / "v1.0-trainval").rename(root / "tables")
    assert "one is below it" not in complaint("nuscenes", root, tmp_path)


def test_labels_of_another_data_set_in_the_same_layout_are_noticed(copy_of, tmp_path):
    root = copy_of("semantickitti")
    shutil.rmtree(root / "dataset/sequences/11")
    assert "not ids of the data set" in complaint("synlidar", root / "dataset", tmp_path)


def test_a_bent_archive_is_an_error_and_no_crash(copy_of, tmp_path):
    from xd3d.stages.datasets.a2d2 import build_index, read_sweep

    root = copy_of("a2d2")
    index = build_index(root)
    path = root / str(index.frames.sweep[0])
    with np.load(path) as stored:
        arrays = dict(stored)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, stored in arrays.items():
            with out.open(f"{name}.npy", "w") as file:
                np.save(file, stored)
    content = path.read_bytes()
    for place in range(60, len(content), len(content) // 40):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with suppress(DataError):
            assert len(read_sweep(index, 0).points)


def test_a_root_with_nothing_of_use_in_its_folders_is_no_empty_index(copy_of, tmp_path):
    root = copy_of("synlidar")
    for path in [*root.glob("*/velodyne/*.bin"), *root.glob("*/labels/*.label")]:
        path.rename(path.with_suffix(".part"))
    assert "holds no frame of synlidar; unpack" in complaint("synlidar", root, tmp_path)


def test_a_root_three_levels_down_is_reported_the_right_one(copy_of, tmp_path):
    root = copy_of("semantickitti") / "dataset"
    assert f'--root "{root}"' in complaint("semantickitti", root / "sequences/00/velodyne", tmp_path)


def test_a_folder_that_may_not_be_read_is_named(copy_of, tmp_path):
    root = copy_of("synlidar")
    (root / "00/labels").chmod(0)
    user = os.geteuid()
    os.seteuid(user or 65534)  # rights do not bind the superuser
    try:
        with pytest.raises(DataError, match=r"is not readable; fix that, .* chmod"):
            prepare_dataset("synlidar", root, tmp_path / "index")
    finally:
        os.seteuid(user)
        (root / "00/labels").chmod(0o755)
