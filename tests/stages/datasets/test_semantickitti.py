"""SemanticKITTI: the real frames, the official learning map, calibration files, and partial downloads."""

import re
import shutil

import numpy as np
import pytest
from xd3d.errors import ConfigError, DataError, MissingDataError
from xd3d.stages.datasets.frames import load_frame
from xd3d.stages.datasets.kitti_calibration import read_calibration
from xd3d.stages.datasets.labels import IGNORE, get_merge
from xd3d.stages.datasets.semantickitti import build_index, check_files, read_sweep

MERGE = get_merge("semantickitti-19", "semantickitti")

#: Raw id -> learning id and learning id -> raw id of semantic-kitti-api's semantic-kitti.yaml; 0 is ignored.
LEARNING_MAP = {
    **{0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10, 48: 11},
    **{49: 12, 50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: 0},
    **{252: 1, 253: 7, 254: 6, 255: 8, 256: 5, 257: 5, 258: 4, 259: 5},
}
INVERSE = [10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]


def test_the_merge_is_the_official_learning_map_and_its_inverse():
    expected = [IGNORE if learning == 0 else learning - 1 for learning in LEARNING_MAP.values()]
    assert MERGE.apply(np.array(list(LEARNING_MAP))).tolist() == expected
    assert MERGE.raw_ids.tolist() == INVERSE


def test_a_number_between_the_raw_ids_is_refused():
    with pytest.raises(DataError, match=r"Label 12 is.*are 0, 1, 10, 11, 13"):
        MERGE.apply(np.array([10, 12]))


def test_the_real_frames_keep_the_points_that_were_counted(real_data):
    index = build_index(real_data / "kitti_object")
    assert check_files(index) == []
    kept = {str(key): len(load_frame(index, row, MERGE).points) for row, key in enumerate(index.frames.key)}
    assert kept == {"00/000000": 18_630, "00/000001": 20_210, "08/000000": 20_285}


def test_calibration_gives_the_pixels_of_p2_times_tr(real_data):
    index = build_index(real_data / "kitti_object")
    lines = (index.root / "dataset/sequences/00/calib.txt").read_text().splitlines()
    p2, tr = (np.array(lines[row].split()[1:], float).reshape(3, 4) for row in (2, 4))
    frame = load_frame(index, 0, MERGE)
    points = np.concatenate([frame.points, np.ones((len(frame.points), 1))], axis=1)
    plain = points @ (p2 @ np.concatenate([tr, [[0, 0, 0, 1]]])).T
    np.testing.assert_allclose(frame.projection_uv * index.images.size[0], plain[:, :2] / plain[:, 2:], atol=1e-3)


def test_official_raw_labels_go_through_the_merge(real_data):
    index = build_index(real_data / "semantickitti", cameras="none")
    frame = load_frame(index, 0, MERGE)
    assert len(frame.points) == 123_389
    raw = np.fromfile(index.root / str(index.frames.labels[0]), np.uint32) & 0xFFFF
    for number in np.unique(raw):
        learning = LEARNING_MAP[int(number)]
        assert set(frame.labels[raw == number].tolist()) == {IGNORE if learning == 0 else learning - 1}


def test_a_download_without_images_points_to_them_and_to_lidar_only(real_data):
    with pytest.raises(MissingDataError, match=r"08/image_2 is missing:.*data_odometry_color.*--cameras"):
        build_index(real_data / "semantickitti")


def test_a_download_without_the_right_camera_can_be_indexed_with_the_left_alone(root_of):
    with pytest.raises(MissingDataError, match=r"image_3 is missing:.*data_odometry_color.*--cameras image_2"):
        build_index(root_of("semantickitti"), cameras="all")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: text.replace("Tr:", "tr:"), "no line 'Tr:'"),
        (lambda text: re.sub(r"P2: \S+", "P2: nan", text), "P2 .* 12 finite numbers"),
        (lambda text: re.sub(r"P2: \S+", "P2:", text), "P2 .* 12 finite numbers"),
        (lambda text: re.sub(r"P2: \S+", "P2: many", text), "P2 .* damaged"),
        (lambda text: re.sub(r"P2: .*", "P2: " + "0 " * 12, text), "cannot be inverted"),
        (lambda _: "", "no line 'Tr:'; it has none"),
    ],
)
def test_a_damaged_calibration_names_file_and_line(root_of, tmp_path, damage, expected):
    whole = (root_of("semantickitti") / "dataset/sequences/00/calib.txt").read_text()
    path = tmp_path / "calib.txt"
    path.write_text(damage(whole))
    with pytest.raises(DataError, match=expected) as caught:
        read_calibration(path)
    assert str(path) in str(caught.value)
    assert "data_odometry_calib.zip" in str(caught.value)


def test_a_missing_calibration_is_needed_for_images_only(copy_of):
    root = copy_of("semantickitti")
    (root / "dataset/sequences/07/calib.txt").unlink()
    with pytest.raises(MissingDataError, match=r"07/calib\.txt"):
        build_index(root)
    assert len(build_index(root, cameras="none").frames.key)


def test_frames_that_some_folder_lacks_are_missing_and_not_left_out(copy_of):
    root = copy_of("semantickitti")
    folder = root / "dataset/sequences/00"
    (folder / "velodyne/000000.bin").unlink()
    assert [fault.path for fault in check_files(build_index(root))] == [
        folder / "velodyne/000000.bin",
    ]


def test_sweeps_and_labels_whose_names_have_nothing_in_common_are_told_so_at_once(copy_of):
    root = copy_of("semantickitti")
    for path in root.glob("dataset/sequences/00/velodyne/*.bin"):
        path.rename(path.with_stem(str(int(path.stem))))
    with pytest.raises(DataError, match=r"sequences/00: .*velodyne and of labels .* '0' and '000000'; .* one name"):
        build_index(root)


def test_labels_of_sequences_after_the_benchmarks_are_told_to_be_left_aside(copy_of, caplog):
    root = copy_of("semantickitti")
    shutil.move(root / "dataset/sequences/00", root / "dataset/sequences/30")
    assert set(build_index(root).frames.labels[-2:].tolist()) == {""}
    assert "sequences 30 are not read" in caplog.text


def test_sequences_after_ten_have_no_labels_and_cannot_be_scored(root_of):
    index = build_index(root_of("semantickitti"))
    hidden = index.frames.scene == "11"
    assert set(index.frames.labels[hidden].tolist()) == {""}
    assert set(index.frames.split[hidden].tolist()) == {"test"}


def test_the_folder_above_sequences_may_be_called_anything(copy_of, tmp_path):
    root = copy_of("semantickitti")
    shutil.move(root / "dataset", tmp_path / "plain")
    assert len(build_index(tmp_path / "plain").frames.key) == 7


def test_a_version_is_refused(root_of):
    with pytest.raises(ConfigError, match="no versions"):
        build_index(root_of("semantickitti"), version="v1")


def test_points_behind_the_lidar_are_never_shown(root_of):
    index = build_index(root_of("semantickitti"))
    assert (read_sweep(index, 0).points[:, 0] < 0).any()
    assert (load_frame(index, 0, MERGE).points[:, 0] > 0).all()
