"""The nuScenes reader: its facts against the devkit, and a message for each way a data root can be wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from xd3d.errors import ConfigError, DataError, MissingDataError
from xd3d.stages.datasets.nuscenes import CAMERAS, build_index, check_files

VERSION = "v1.0-trainval"


def edit_table(root, name, change):
    """Let ``change`` edit the rows of a table in place."""
    path = root / VERSION / f"{name}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_keyframes_that_the_tables_leave_incomplete_may_be_left_out(tiny_nuscenes_root, tmp_path):
    root = Path(shutil.copytree(tiny_nuscenes_root, tmp_path / "root"))
    whole = build_index(root)
    second = str(whole.frames.key[1])
    edit_table(root, "lidarseg", lambda rows: rows.pop(0))
    with pytest.raises(DataError, match=r"names no label file .*--allow-missing"):
        build_index(root)
    image = str(whole.images.key[1])
    edit_table(root, "sample_data", lambda rows: rows.remove(next(row for row in rows if row["token"] == image)))
    index = build_index(root, allow_missing=True)
    assert "CAM_FRONT" in index.left_out[second]
    assert len(index.left_out) == 2
    assert set(whole.frames.key) - set(index.frames.key) == set(index.left_out)
    np.testing.assert_array_equal(index.images.key, whole.images.key[np.isin(whole.frames.key, index.frames.key)])


def test_real_root_has_one_frame_and_one_image_by_default(real_nuscenes):
    index = build_index(real_nuscenes)
    assert index.version == "v1.0-mini"
    assert index.images.camera.tolist() == ["CAM_FRONT"]
    assert index.frames.scene.tolist() == ["scene-0061"]
    assert index.frames.split.tolist() == ["train"]
    assert index.frames.location.tolist() == ["singapore-onenorth"]
    assert not check_files(index)


def test_real_root_has_six_images_with_all_cameras(real_nuscenes):
    index = build_index(real_nuscenes, cameras="all")
    assert index.images.camera.tolist() == list(CAMERAS)
    assert index.images.size.tolist() == [[1600, 900]] * 6
    assert not check_files(index)


def test_columns_equal_the_devkits_tables(tiny_nuscenes_root):
    from nuscenes.nuscenes import NuScenes

    index = build_index(tiny_nuscenes_root, cameras="all")
    devkit = NuScenes(version=VERSION, dataroot=str(tiny_nuscenes_root), verbose=False)
    assert len(index.frames.key) == len(devkit.sample)
    for row, token in enumerate(index.frames.key):
        sample = devkit.get("sample", str(token))
        scene = devkit.get("scene", sample["scene_token"])
        assert index.frames.scene[row] == scene["name"]
        assert index.frames.description[row] == scene["description"]
        assert index.frames.location[row] == devkit.get("log", scene["log_token"])["location"]
        lidar = sample["data"]["LIDAR_TOP"]
        assert (
            index.root / str(index.frames.sweep[row])
            == tiny_nuscenes_root / devkit.get_sample_data(lidar)[0][len(str(tiny_nuscenes_root)) + 1 :]
        )
        assert index.frames.labels[row] == devkit.get("lidarseg", lidar)["filename"]
        for image in index.images_of(row):
            path, _, intrinsics = devkit.get_sample_data(sample["data"][str(index.images.camera[image])])
            assert str(tiny_nuscenes_root / str(index.images.path[image])) == path
            np.testing.assert_array_equal(index.images.intrinsics[image], intrinsics)


def test_frames_are_sorted_by_scene_and_time(tiny_nuscenes_root):
    index = build_index(tiny_nuscenes_root)
    assert index.frames.scene.tolist() == sorted(index.frames.scene.tolist())
    assert index.frames.split[index.frames.scene == "scene-0003"].tolist() == ["val", "val"]


def test_two_builds_have_equal_digests(tiny_nuscenes_root):
    assert build_index(tiny_nuscenes_root).digest == build_index(tiny_nuscenes_root).digest


def test_building_prints_nothing(tiny_nuscenes_root, capfd):
    build_index(tiny_nuscenes_root)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "cameras", ["CAM_BACK,CAM_FRONT", ["CAM_BACK", "CAM_FRONT", "CAM_BACK"], " CAM_FRONT, CAM_BACK"]
)
def test_a_subset_of_cameras_has_one_order(tiny_nuscenes_root, cameras):
    assert build_index(tiny_nuscenes_root, cameras=cameras).cameras == ("CAM_FRONT", "CAM_BACK")


def test_an_unknown_camera_gets_the_nearest(tiny_nuscenes_root):
    with pytest.raises(ConfigError, match=r"'CAM_FRNT'.*'CAM_FRONT'"):
        build_index(tiny_nuscenes_root, cameras="CAM_FRNT")
    with pytest.raises(ConfigError, match="No camera"):
        build_index(tiny_nuscenes_root, cameras="")


def test_all_means_the_cameras_that_the_root_has(broken_root):
    root = broken_root()
    edit_table(
        root, "sensor", lambda rows: [row.update(channel="OTHER") for row in rows if row["channel"] == "CAM_BACK"]
    )
    assert build_index(root, cameras="all").cameras == tuple(name for name in CAMERAS if name != "CAM_BACK")


def test_a_root_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingDataError, match="nowhere does not exist"):
        build_index(tmp_path / "nowhere")


def test_a_folder_without_tables_says_what_it_holds(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(MissingDataError, match="it holds pictures"):
        build_index(tmp_path)


@pytest.mark.parametrize("level", ["..", VERSION, "samples"])
def test_a_root_at_the_wrong_level_names_the_right_one(broken_root, level):
    root = broken_root()
    given = (root / level).resolve()
    with pytest.raises(MissingDataError, match="is not a nuScenes root") as caught:
        build_index(given)
    assert f'--root "{root}"' in str(caught.value)


def test_a_wrong_version_lists_those_found(tiny_nuscenes_root):
    with pytest.raises(MissingDataError, match=r"'v1\.0-mini'.*has: v1\.0-trainval"):
        build_index(tiny_nuscenes_root, version="v1.0-mini")


def test_among_several_versions_trainval_comes_first_and_others_must_be_named(broken_root):
    root = broken_root()
    shutil.copytree(root / VERSION, root / "v1.0-mini")
    assert build_index(root).version == VERSION
    assert build_index(root, version="v1.0-mini").version == "v1.0-mini"
    (root / VERSION).rename(root / "v1.0-test")
    with pytest.raises(MissingDataError, match=r"several versions: v1\.0-mini, v1\.0-test"):
        build_index(root)


@pytest.mark.parametrize("table", ["ego_pose", "sample_annotation", "map", "sensor", "category"])
def test_a_missing_table_is_named(broken_root, table):
    root = broken_root()
    (root / VERSION / f"{table}.json").unlink()
    with pytest.raises(MissingDataError, match=f"{table}.json"):
        build_index(root)


def test_a_missing_lidarseg_table_names_the_download(broken_root):
    root = broken_root()
    (root / VERSION / "lidarseg.json").unlink()
    with pytest.raises(MissingDataError, match="unpack 'nuScenes-lidarseg'"):
        build_index(root)


def test_the_category_table_from_before_lidarseg_is_refused(broken_root):
    root = broken_root()
    edit_table(root, "category", lambda rows: [row.pop("index") for row in rows])
    with pytest.raises(DataError, match=r"category\.json"):
        build_index(root)


@pytest.mark.parametrize("table", ["sample_data", "lidarseg", "log", "scene"])
def test_a_cut_table_is_named(broken_root, table):
    root = broken_root()
    path = root / VERSION / f"{table}.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=f"{table}.json"):
        build_index(root)


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("ego_pose", lambda rows: rows.pop(0)),
        ("calibrated_sensor", lambda rows: rows.pop(1)),
        ("log", lambda rows: rows.pop(0)),
        ("scene", lambda rows: rows[0].pop("description")),
        ("sample_data", lambda rows: rows[0].pop("filename")),
        ("ego_pose", lambda rows: rows[0].update(rotation=None)),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(broken_root, table, change):
    root = broken_root()
    edit_table(root, table, change)
    with pytest.raises(DataError, match="are inconsistent"):
        build_index(root)


def test_a_keyframe_without_the_camera_names_both(broken_root):
    root = broken_root()
    edit_table(root, "sample_data", lambda rows: rows.pop(1))
    with pytest.raises(DataError, match=r"sample-0000 has.*CAM_FRONT.*has: CAM_BACK"):
        build_index(root)


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside.jpg", "samples/../../outside.jpg", "", "samples\\..\\x"])
@pytest.mark.parametrize("table", ["sample_data", "lidarseg"])
def test_a_path_that_leaves_the_root_is_refused(broken_root, path, table):
    root = broken_root()
    edit_table(root, table, lambda rows: rows[0].update(filename=path))
    with pytest.raises(DataError, match=f"{table}.json"):
        build_index(root)


def test_a_link_out_of_the_root_is_refused_below_its_top_folders(broken_root, tmp_path):
    root = broken_root()
    elsewhere = tmp_path / "other disk"
    shutil.move(root / "samples", elsewhere)
    (root / "samples").symlink_to(elsewhere)
    index = build_index(root)
    assert not check_files(index)
    image = elsewhere / "CAM_FRONT" / str(index.images.path[0]).rsplit("/", 1)[1]
    image.rename(tmp_path / "image.jpg")
    image.symlink_to(tmp_path / "image.jpg")
    with pytest.raises(DataError, match="link that leads out"):
        build_index(root)


def test_a_calibration_with_nan_names_camera_and_keyframe(broken_root):
    root = broken_root()
    edit_table(root, "calibrated_sensor", lambda rows: rows[1]["camera_intrinsic"][0].__setitem__(0, float("nan")))
    with pytest.raises(DataError, match=r"CAM_FRONT.*sample-0000"):
        build_index(root)


def test_scenes_of_no_official_split_are_refused(broken_root):
    root = broken_root()
    edit_table(root, "scene", lambda rows: rows[0].update(name="my-scene"))
    with pytest.raises(DataError, match="my-scene"):
        build_index(root)


def test_the_test_set_needs_no_labels(broken_root):
    root = broken_root()
    shutil.rmtree(root / "lidarseg")
    edit_table(root, "lidarseg", lambda rows: rows.clear())
    edit_table(root, "scene", lambda rows: [row.update(name=f"scene-{77 + n:04d}") for n, row in enumerate(rows)])
    index = build_index(root)
    assert set(index.frames.split.tolist()) == {"test"}
    assert set(index.frames.labels.tolist()) == {""}
    assert not check_files(index)
