"""Files that are not what their names say: they are named for what they are, with the command that mends it."""

import bz2
import gzip
import lzma
import sqlite3

import numpy as np
import pytest
import yaml
from xd3d.errors import DataError, MissingDataError
from xd3d.stages.datasets.foreign_files import foreign_kind
from xd3d.stages.datasets.prepare import prepare_dataset
from xd3d.stages.datasets.sweeps import load_sweep
from xd3d.stages.predict.sweeps import find_sweeps

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"5" * 64 + b"\nsize 1920000\n"
SWEEP = np.random.default_rng(0).normal(0, 20, (400, 4)).astype("<f4").tobytes()


def said(dataset, root, folder):
    """What ``prepare`` says of a root with a fault."""
    try:
        return "\n".join(map(str, prepare_dataset(dataset, root, folder / "index").missing))
    except (DataError, MissingDataError) as error:
        return str(error)


FILES = [
    ("nuscenes", "samples/LIDAR_TOP/*.bin"),
    ("nuscenes", "lidarseg/*/*.bin"),
    ("nuscenes", "samples/CAM_FRONT/*.jpg"),
    ("nuscenes", "v1.0-trainval/sample_data.json"),
    ("semantickitti", "dataset/sequences/00/calib.txt"),
    ("semantickitti", "dataset/sequences/00/labels/*.label"),
    ("semantickitti", "dataset/sequences/00/image_2/*.png"),
    ("semanticstf", "val/val.txt"),
    ("a2d2", "*/lidar/*/*.npz"),
    ("a2d2", "cams_lidars.json"),
    ("virtualkitti", "vkitti3d_npy/*/*.npy"),
    ("folder", "dataset.yaml"),
    ("folder", "dataset/sequences/00/velodyne/*.bin"),
    ("folder", "dataset/sequences/00/labels/*.label"),
]


@pytest.mark.parametrize(("dataset", "pattern"), FILES)
def test_pointers_of_git_lfs_are_named_whatever_they_stand_for(copy_of, tmp_path, dataset, pattern):
    root = copy_of(dataset)
    paths = sorted(root.glob(pattern))
    for path in paths:
        path.write_bytes(POINTER)
    found = said(dataset, root, tmp_path)
    assert paths[0].name in found
    assert "git lfs pull" in found
    assert "again" not in found.replace("git lfs pull", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(SWEEP), ["gunzip", "a.bin.gz"]),
        (gzip.compress(b"", mtime=0), ["gunzip"]),
        (bz2.compress(SWEEP), ["bunzip2"]),
        (lzma.compress(SWEEP), ["unxz"]),
        (b"\n<!DOCTYPE html>\n<html><title>404</title></html>", ["web page", "download"]),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ["web page"]),
        (b"/annex/objects/SHA256E-s4--ab.bin\n", ["git annex get"]),
        (b"#ROSBAG V2.0\n" + b"\0" * 99, ["ROS 1", "rosbags-convert", "mcap"]),
    ],
)
def test_what_a_sweep_turns_out_to_be_is_named(tmp_path, content, words):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_sweep(tmp_path / "a.bin")
    assert [word for word in ["a.bin", *words] if word not in str(caught.value)] == []


def test_a_raw_sweep_that_begins_as_gzip_does_is_one(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\x1f\x8b\x08\x41" + SWEEP[4:])
    assert len(load_sweep(tmp_path / "a.bin").points) == 400


def test_missing_files_that_are_there_in_another_form_say_so(tmp_path, copy_of):
    root = copy_of("semantickitti")
    path = next(root.glob("dataset/sequences/00/velodyne/*.bin"))
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert "gunzip" in said("semantickitti", root, tmp_path)
    image = next(root.glob("dataset/sequences/00/image_2/*.png"))
    image.unlink()
    image.symlink_to("../../gone.png")
    assert "link to ../../gone.png" in said("semantickitti", root, tmp_path)


def test_sweeps_of_a_folder_that_are_all_packed_are_named(copy_of, tmp_path):
    root = copy_of("folder")
    for path in root.glob("dataset/sequences/*/velodyne/*.bin"):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert "gunzip" in said("folder", root, tmp_path)
    about = yaml.safe_load((root / "dataset.yaml").read_text())
    about["sweeps"] += ".gz"
    (root / "dataset.yaml").write_text(yaml.safe_dump(about))
    assert "gunzip" in said("folder", root, tmp_path)
    with pytest.raises(MissingDataError, match="gunzip"):
        find_sweeps(root / "dataset/sequences/00/velodyne")


def test_bags_that_are_not_read_are_named_with_the_conversion(tmp_path, copy_of):
    (tmp_path / "bags").mkdir()
    with sqlite3.connect(tmp_path / "bags/drive_0.db3") as bag:
        bag.execute("create table messages (id integer)")
    bag.close()
    with pytest.raises(MissingDataError, match=f"sqlite3.*rosbags-convert --src {tmp_path}/bags .*mcap"):
        find_sweeps(tmp_path / "bags")
    root = copy_of("folder")
    (root / "bags").mkdir()
    (root / "bags/drive.bag").write_bytes(b"#ROSBAG V2.0\n" + b"\0" * 99)
    (root / "dataset.yaml").write_text('sweeps: "bags/{scene}.bag/{frame}"\n')
    assert "rosbags-convert" in said("folder", root, tmp_path)


def test_what_is_as_it_should_be_is_not_named(tmp_path, copy_of):
    for dataset in ("semantickitti", "a2d2", "folder"):
        for path in copy_of(dataset).rglob("*"):
            assert foreign_kind(path) is None
