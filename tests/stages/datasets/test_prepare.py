"""`prepare` finds every missing or truncated file in one go, and writes an index only when there is none."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from xd3d.errors import ConfigError, MissingDataError
from xd3d.stages.datasets.index import FrameIndex
from xd3d.stages.datasets.nuscenes import build_index
from xd3d.stages.datasets.prepare import prepare_dataset
from xd3d.stages.datasets.readers import READERS


def prepare(root, tmp_path, **options):
    return prepare_dataset("nuscenes", root, tmp_path / "index", **options)


def test_a_whole_root_becomes_an_index(tiny_nuscenes_root, tmp_path):
    summary = prepare(tiny_nuscenes_root, tmp_path, cameras="all")
    assert (summary.frames, summary.images, summary.missing) == (18, 108, ())
    assert FrameIndex.load(tmp_path / "index").digest == build_index(tiny_nuscenes_root, cameras="all").digest
    facts = json.loads(json.dumps(summary.to_json()))
    assert facts.keys() == {"dataset", "index", "frames", "images", "missing", "dropped", "splits"}
    assert facts["dropped"] == 0
    assert sum(facts["splits"]["all"].values()) == 18


def test_preparing_again_is_safe(tiny_nuscenes_root, tmp_path):
    assert prepare(tiny_nuscenes_root, tmp_path) == prepare(tiny_nuscenes_root, tmp_path)


def cut(path, size=-5):
    path.write_bytes(path.read_bytes()[:size])


def replace_by_text(path):
    path.write_text("not an image")


def shrink(path):
    Image.new("RGB", (40, 30)).save(path)


FAULTS = [
    ("image", lambda path: path.unlink(), "the image is missing"),
    ("image", cut, "truncated .*JPEG end marker"),
    ("image", lambda path: cut(path, 100), "cannot be opened|truncated"),
    ("image", lambda path: cut(path, 0), "cannot be opened"),
    ("image", replace_by_text, "cannot be opened"),
    ("image", shrink, "40x30 pixels.* 160x90"),
    ("sweep", lambda path: path.unlink(), "the sweep is missing"),
    ("sweep", cut, "truncated: 11995 bytes is not a multiple of 20"),
    ("sweep", lambda path: cut(path, 0), "the sweep is empty"),
    ("labels", lambda path: path.unlink(), "the label file is missing"),
    ("labels", cut, "595 entries, its sweep has 600 points"),
    ("labels", lambda path: cut(path, 0), "the label file is empty"),
]


@pytest.mark.parametrize(("kind", "damage", "reason"), FAULTS)
def test_a_fault_names_file_expectation_and_remedy(broken_root, tmp_path, kind, damage, reason):
    root = broken_root()
    index = build_index(root)
    column = {"image": index.images.path, "sweep": index.frames.sweep, "labels": index.frames.labels}[kind]
    path = root / str(column[4])
    damage(path)
    summary = prepare(root, tmp_path)
    assert [fault.path for fault in summary.missing] == [path]
    assert re.search(reason, summary.missing[0].reason)
    assert "again" in summary.missing[0].reason
    assert summary.index is None
    assert not (tmp_path / "index").exists()


def test_all_faults_are_listed_at_once_in_the_order_of_the_frames(broken_root, tmp_path):
    root = broken_root()
    index = build_index(root)
    paths = [root / str(index.frames.sweep[1]), root / str(index.images.path[2]), root / str(index.frames.labels[5])]
    for path in paths:
        path.unlink()
    shutil.rmtree(root / "maps")
    summary = prepare(root, tmp_path)
    assert [fault.path for fault in summary.missing] == paths
    assert summary.to_json()["missing"][0]["file"] == str(paths[0])


def test_faults_leave_an_older_index_alone(broken_root, tmp_path):
    root = broken_root()
    prepare(root, tmp_path)
    before = FrameIndex.load(tmp_path / "index").digest
    (root / str(build_index(root, cameras="all").images.path[1])).unlink()
    assert prepare(root, tmp_path, cameras="all").missing
    assert FrameIndex.load(tmp_path / "index").digest == before


def test_images_of_cameras_that_were_not_chosen_are_not_asked_for(broken_root, tmp_path):
    root = broken_root()
    shutil.rmtree(root / "samples" / "CAM_BACK")
    assert not prepare(root, tmp_path).missing
    assert len(prepare(root, tmp_path, cameras="all").missing) == 18


def test_zeros_after_the_end_marker_are_no_fault(broken_root, tmp_path):
    root = broken_root()
    path = root / str(build_index(root).images.path[0])
    path.write_bytes(path.read_bytes() + bytes(7))
    assert not prepare(root, tmp_path).missing


def test_an_unknown_data_set_gets_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="'nuscenes'"):
        prepare_dataset("nuscene", tmp_path, tmp_path)


def test_every_reader_can_be_chosen_in_the_settings():
    from typing import get_args

    from xd3d.stages.datasets.catalogue import DatasetName

    assert set(READERS) == set(get_args(DatasetName))


def test_a_root_with_spaces_and_a_relative_path_works(tiny_nuscenes_root, tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tiny_nuscenes_root.parent)
    summary = prepare(Path(tiny_nuscenes_root.name), tmp_path)
    index = FrameIndex.load(tmp_path / "index")
    assert not summary.missing
    assert index.root == tiny_nuscenes_root
    assert np.all(index.images.size == [160, 90])


def test_incomplete_frames_are_left_out_where_that_is_allowed_and_the_index_keeps_the_list(broken_root, tmp_path):
    root = broken_root()
    whole = build_index(root, cameras="all")
    cut(root / str(whole.frames.sweep[2]))
    (root / str(whole.frames.labels[5])).unlink()
    (root / str(whole.images.path[whole.images_of(9)[3]])).unlink()
    summary = prepare(root, tmp_path, cameras="all")
    assert (summary.index, summary.incomplete, len(summary.missing)) == (None, 3, 3)
    summary = prepare(root, tmp_path, cameras="all", allow_missing=True)
    assert (summary.frames, summary.images, summary.missing) == (15, 90, ())
    gone = [str(whole.frames.key[row]) for row in (2, 5, 9)]
    assert [each["frame"] for each in summary.to_json()["left_out"]] == gone
    index = FrameIndex.load(tmp_path / "index")
    assert list(index.left_out) == gone
    assert "truncated" in index.left_out[gone[0]]
    kept = np.setdiff1d(np.arange(18), [2, 5, 9])
    np.testing.assert_array_equal(index.frames.key, whole.frames.key[kept])
    for row, old in enumerate(kept):
        np.testing.assert_array_equal(index.images.key[index.images_of(row)], whole.images.key[whole.images_of(old)])


def test_a_root_without_a_complete_frame_is_refused_even_so(broken_root, tmp_path):
    root = broken_root()
    shutil.rmtree(root / "samples/LIDAR_TOP")
    with pytest.raises(MissingDataError, match="18 frames"):
        prepare(root, tmp_path, allow_missing=True)


def test_a_sequence_without_its_images_is_left_out_as_a_whole(copy_of, tmp_path):
    root = copy_of("semantickitti")
    shutil.rmtree(root / "dataset/sequences/00/image_2")
    (root / "dataset/sequences/01/calib.txt").unlink()
    with pytest.raises(MissingDataError, match="00/image_2"):
        prepare_dataset("semantickitti", root, tmp_path / "index")
    summary = prepare_dataset("semantickitti", root, tmp_path / "index", allow_missing=True)
    assert summary.missing == ()
    left = FrameIndex.load(tmp_path / "index").left_out
    assert {key.partition("/")[0] for key in left} == {"00", "01"}
    assert summary.frames + len(left) == 7


PARTS = [
    ("virtualkitti", "vkitti_1.3.1_rgb/0001", "--cameras"),
    ("virtualkitti", "vkitti_1.3.1_rgb/0001/fog", "clone,morning,overcast,rain,sunset"),
    ("virtualkitti", "vkitti3d_npy/0001", "0001"),
    ("depth", "vkitti_1.3.1_scenegt/0001/clone", "0001"),
    ("depth", "vkitti_1.3.1_depthgt/0001", "0001"),
    ("a2d2", "{scene}/label", "label"),
    ("a2d2", "{scene}/lidar", "lidar"),
    ("a2d2", "{scene}/camera/cam_front_center", "camera"),
]


@pytest.mark.parametrize(("dataset", "part", "words"), PARTS)
def test_a_part_that_was_not_downloaded_leaves_its_world_or_scene_out(copy_of, tmp_path, dataset, part, words):
    root = copy_of("virtualkitti" if dataset == "depth" else dataset)
    if dataset == "depth":
        shutil.rmtree(root / "vkitti3d_npy")
        dataset = "virtualkitti"
    scenes = sorted(READERS[dataset].build_index(root).frames.scene.tolist())
    scene = scenes[0]
    shutil.rmtree(root / part.format(scene=scene))
    with pytest.raises(MissingDataError, match="--allow-missing") as caught:
        prepare_dataset(dataset, root, tmp_path / "index")
    assert words in str(caught.value)
    summary = prepare_dataset(dataset, root, tmp_path / "index", allow_missing=True)
    assert summary.missing == ()
    assert summary.frames == sum(each != scene for each in scenes)
    left = FrameIndex.load(tmp_path / "index").left_out
    assert len(left) == scenes.count(scene)
    assert {key.partition("/")[0] for key in left} == {scene}
    for other in set(scenes) - {scene}:
        shutil.rmtree(root / part.format(scene=other).replace("0001", other))
    with pytest.raises(MissingDataError, match=f"Not one of {len(scenes)} frames"):
        prepare_dataset(dataset, root, tmp_path / "index", allow_missing=True)


def test_points_that_are_left_out_are_counted(broken_root, tmp_path, caplog):
    root = broken_root()
    whole = build_index(root)
    for row in (2, 5):
        path = root / str(whole.frames.sweep[row])
        points = np.fromfile(path, np.float32).reshape(-1, 5)
        points[::3, :3] = 0 if row == 2 else np.nan
        points.tofile(path)
    summary = prepare(root, tmp_path)
    assert summary.to_json()["dropped"] == summary.dropped == 400
    assert caplog.text.count("are left out") == 2
    (root / str(whole.images.path[whole.images_of(5)[0]])).unlink()
    assert prepare(root, tmp_path, allow_missing=True).dropped == 200


def test_labels_of_ids_that_a_folder_does_not_name_are_told_once_and_with_their_share(copy_of, tmp_path, caplog):
    root = copy_of("folder")
    prepare_dataset("folder", root, tmp_path / "index")
    caplog.clear()
    for path in root.glob("dataset/sequences/*/labels/*.label"):
        labels = np.fromfile(path, "<u4")
        np.where(np.arange(len(labels)) % 4, labels, 12345).astype("<u4").tofile(path)
    prepare_dataset("folder", root, tmp_path / "index")
    assert "12345 (25.0%)" in caplog.text
    about = root / "dataset.yaml"
    about.write_text(about.read_text() + "ignore: [12345]\n")
    caplog.clear()
    prepare_dataset("folder", root, tmp_path / "index")
    assert "12345" not in caplog.text


def test_a_folder_that_leaves_nothing_to_train_on_says_so(copy_of, tmp_path, caplog):
    root = copy_of("folder")
    assert prepare_dataset("folder", root, tmp_path / "index").splits["all"]["train"] > 0
    assert "train on" not in caplog.text
    about = root / "dataset.yaml"
    about.write_text(re.sub(r"^val.*\ntest.*$", 'val: ["*"]', about.read_text(), flags=re.MULTILINE))
    summary = prepare_dataset("folder", root, tmp_path / "index")
    assert summary.splits["all"] == {"train": 0, "val": summary.frames, "test": 0}
    assert f"'val' takes {summary.frames}" in caplog.text
