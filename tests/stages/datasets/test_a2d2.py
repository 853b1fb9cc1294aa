"""A2D2: lenses, colours, rows and columns, and what is wrong with an archive or a calibration."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from xd3d.errors import DataError, MissingDataError
from xd3d.stages.datasets.a2d2 import build_index, check_files, read_labels, read_sweep
from xd3d.stages.datasets.catalogue import A2D2_COLOURS, RAW_NAMES
from xd3d.stages.datasets.frames import load_frame
from xd3d.stages.datasets.index import FrameIndex
from xd3d.stages.datasets.labels import IGNORE, get_merge
from xd3d.stages.datasets.lens import Lens
from xd3d.stages.extract.images import load_image

MERGE = get_merge("a2d2-semantickitti-10", "a2d2")


def edit_calibration(root, change) -> None:
    path = root / "cams_lidars.json"
    values = json.loads(path.read_text())
    change(values["cameras"]["front_center"])
    path.write_text(json.dumps(values))


def rewrite(path, **changes) -> None:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(path, **{name: values for name, values in (arrays | changes).items() if values is not None})


def test_classes_of_both_settings_by_colour_name():
    def classes(merge, raw_name):
        number = next(number for number, name in RAW_NAMES["a2d2"].items() if name == raw_name)
        found = int(merge.lut[number])
        return merge.classes[found] if found >= 0 else None

    expected = {"Ego car": "car", "Small vehicles 3": "bike", "Curbstone": "sidewalk", "Zebra crossing": "road"}
    for merge in (MERGE, get_merge("a2d2-nuscenes-8", "a2d2")):
        assert {name: classes(merge, name) for name in expected} == expected
        ignored = ("Sky", "Utility vehicle 1", "Tractor", "Non-drivable street", "Blurred area", "Rain dirt")
        assert {classes(merge, name) for name in (*ignored, "unknown colour")} == {None}
    assert classes(MERGE, "Grid structure") == "other-objects"
    assert classes(get_merge("a2d2-nuscenes-8", "a2d2"), "Parking area") is None


def test_labels_are_the_colours_under_the_straightened_pixels(copy_of):
    import cv2

    root = copy_of("a2d2")
    index = build_index(root)
    view = json.loads((root / "cams_lidars.json").read_text())["cameras"]["front_center"]
    bent = np.asarray(Image.open(root / str(index.frames.labels[0])))
    stored, straight = np.array(view["CamMatrixOriginal"]), np.array(view["CamMatrix"])
    image = cv2.undistort(bent, stored, distCoeffs=np.array(view["Distortion"]), newCameraMatrix=straight)
    with np.load(root / str(index.frames.sweep[0])) as arrays:
        colours = image[arrays["row"].astype(int), arrays["col"].astype(int)]
    names = [A2D2_COLOURS.get("#" + bytes(colour).hex(), "unknown colour") for colour in colours.tolist()]
    raw = read_labels(index, 0, read_sweep(index, 0))
    assert [RAW_NAMES["a2d2"][int(number)] for number in raw] == names
    assert names.count("unknown colour") < 0.4 * len(names)


def test_stage_one_sees_the_straightened_image(copy_of):
    import cv2

    root = copy_of("a2d2")
    index = build_index(root)
    path, lens = root / str(index.images.path[0]), index.lenses["cam_front_center"]
    width, height = index.images.size[0]
    seen = load_image(path, image_size=(int(height), int(width)), lens=lens)
    stored, straight = np.array(lens.stored), np.array(lens.straight)
    plain = cv2.undistort(
        np.asarray(Image.open(path)), stored, distCoeffs=np.array(lens.distortion), newCameraMatrix=straight
    )
    np.testing.assert_array_equal(seen, plain.transpose(2, 0, 1))


def test_a_fisheye_lens_is_undone_by_its_own_model():
    import cv2

    matrix = ((90.0, 0.0, 50.0), (0.0, 90.0, 40.0), (0.0, 0.0, 1.0))
    lens = Lens(kind="fisheye", stored=matrix, straight=matrix, distortion=(-0.04, 0.01, 0.0, 0.0))
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    expected = cv2.fisheye.undistortImage(image, np.array(matrix), D=np.array(lens.distortion), Knew=np.array(matrix))
    np.testing.assert_array_equal(lens.undistort(image), expected)


def test_the_lens_is_kept_with_the_index_and_counts_in_its_digest(copy_of, tmp_path):
    root = copy_of("a2d2")
    index = build_index(root)
    index.save(tmp_path / "index")
    assert FrameIndex.load(tmp_path / "index").lenses == index.lenses
    edit_calibration(root, lambda view: view["Distortion"][0].__setitem__(0, -0.2))
    assert build_index(root).digest != index.digest


def test_pixels_are_the_data_sets_own(copy_of):
    root = copy_of("a2d2")
    index = build_index(root)
    path = root / str(index.frames.sweep[0])
    with np.load(path) as arrays:
        row, col = arrays["row"].copy(), arrays["col"].copy()
    row[0], col[1], col[2] = 0.0, -1.0, index.images.size[0, 0]
    rewrite(path, row=row, col=col)
    frame = load_frame(index, 0, MERGE)
    kept = np.setdiff1d(np.arange(len(row)), [1, 2])
    np.testing.assert_array_equal(frame.source_rows, kept)
    expected = np.stack([col, row], axis=1)[kept] / index.images.size[0]
    np.testing.assert_allclose(frame.projection_uv, expected, atol=1e-6)


def test_frames_without_rows_are_left_out_as_published(copy_of):
    root = copy_of("a2d2")
    index = build_index(root)
    path = root / str(index.frames.sweep[1])
    rewrite(path, row=None)
    assert len(build_index(root).frames.key) == len(index.frames.key) - 1
    with pytest.raises(DataError, match="not an archive with the arrays points, row, col"):
        read_sweep(index, 1)


def test_an_array_of_another_length_is_named(copy_of):
    root = copy_of("a2d2")
    index = build_index(root)
    path = root / str(index.frames.sweep[0])
    rewrite(path, row=np.zeros(3))
    with pytest.raises(DataError, match=rf"{path.name} holds.* row \[3\] of float64"):
        read_sweep(index, 0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda view: view["CamMatrix"][0].__setitem__(0, float("nan")), "CamMatrix must be 9 finite numbers"),
        (lambda view: view.update(Distortion=[[0.1, 0.2]]), "Distortion must be 5 finite numbers"),
        (lambda view: view.pop("Resolution"), "Resolution"),
        (lambda view: view.update(Resolution=[0, 10]), "0x10"),
    ],
)
def test_a_damaged_calibration_is_named(copy_of, change, expected):
    root = copy_of("a2d2")
    edit_calibration(root, change)
    with pytest.raises(DataError, match=expected) as caught:
        build_index(root)
    assert "cams_lidars.json" in str(caught.value)


def test_what_is_missing_of_a_download_is_named(copy_of):
    root = copy_of("a2d2")
    shutil.rmtree(root / "20180810_142822/camera")
    with pytest.raises(MissingDataError, match="20180810_142822/camera/cam_front_center"):
        build_index(root)
    assert len(build_index(root, cameras="none").frames.key) == 3
    (root / "cams_lidars.json").unlink()
    with pytest.raises(MissingDataError, match=r"cams_lidars\.json.*missing"):
        build_index(root, cameras="none")


def test_another_list_of_classes_is_refused(copy_of):
    root = copy_of("a2d2")
    path = root / "class_list.json"
    path.write_text(path.read_text().replace("Car 1", "Auto 1"))
    with pytest.raises(DataError, match="A2D2's 55 classes"):
        build_index(root)


def test_an_archive_without_columns_is_found_before_training(copy_of):
    root = copy_of("a2d2")
    index = build_index(root)
    rewrite(root / str(index.frames.sweep[0]), col=None)
    assert ["points, row, col ('col" in fault.reason for fault in check_files(index)] == [True]


def test_a_mixed_colour_is_ignored():
    assert MERGE.apply(np.array([len(A2D2_COLOURS)])).tolist() == [IGNORE]
