"""Lenses of a user's folder: points lie where OpenCV draws them once stage one has straightened the image."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from xd3d.errors import DataError
from xd3d.stages.datasets.folder import build_index
from xd3d.stages.datasets.folder_calibration import read_folder_calibration
from xd3d.stages.datasets.frames import load_frame
from xd3d.stages.datasets.index import FrameIndex
from xd3d.stages.extract.images import PictureSource

SIZE = (480, 360)
K = np.array([[260.0, 0, 236], [0, 255, 184], [0, 0, 1]])
POSE = np.array([[0, -1.0, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3], [0, 0, 0, 1]])
#: Model, coefficients in OpenCV's order, and the same by name.
LENSES = [
    ("pinhole", [-0.25, 0.06, 0.001, -0.002], {"k1": -0.25, "k2": 0.06, "p1": 0.001, "p2": -0.002}),
    ("plumb_bob", [-0.3, 0.1, 0.003, -0.002, -0.01], None),
    (
        "rational_polynomial",
        [0.5, 0.1, 0.0005, 0.0003, 0.004, 0.9, 0.25, 0.02],
        {"k1": 0.5, "k2": 0.1, "p1": 0.0005, "p2": 0.0003, "k3": 0.004, "k4": 0.9, "k5": 0.25, "k6": 0.02},
    ),
    ("fisheye", [-0.03, 0.01, -0.004, 0.001], {"k1": -0.03, "k2": 0.01, "k3": -0.004, "k4": 0.001}),
    ("equidistant", [0.05, -0.02, 0.003, -0.001], None),
    ("Kannala-Brandt", [-0.02, 0.004, 0, 0], {"k1": -0.02, "k2": 0.004}),
]


def write(root, model="pinhole", distortion=(), **changes):
    entry = {"intrinsics": K.tolist(), "camera_from_lidar": POSE.tolist(), "model": model, "distortion": distortion}
    entry = {name: value for name, value in {**entry, **changes}.items() if value is not None}
    path = root / f"{abs(hash(json.dumps(entry)))}.json"
    path.write_text(json.dumps({"front": entry}))
    return path


def drawn(points, model, distortion):
    """Stored pixels (x, y) of points in the LiDAR frame, by OpenCV alone."""
    rotation, shift = cv2.Rodrigues(POSE[:3, :3])[0], POSE[:3, 3]
    if model in ("pinhole", "plumb_bob", "rational_polynomial"):
        return cv2.projectPoints(points, rotation, shift, K, np.array(distortion))[0][:, 0]
    return cv2.fisheye.projectPoints(points[:, None], rotation, shift, K, np.array(distortion, float))[0][:, 0]


@pytest.fixture
def folder(tmp_path):
    """Call it with a lens: a folder with one frame, whose image has a dot where OpenCV draws each point."""

    def make(model, distortion, named=None, *, scenes=("a",), **changes):
        across, up = np.meshgrid(np.linspace(-7, 7, 7), np.linspace(-4, 4.5, 5))
        points = np.stack([np.full(35, 9.0), across.ravel(), up.ravel()], axis=1)
        picture = np.zeros((*SIZE[::-1], 3), np.uint8)
        for x, y in np.rint(drawn(points, model, distortion) * 16).astype(int).tolist():
            cv2.circle(picture, (x, y), 16 * 3, (255, 255, 255), -1, cv2.LINE_AA, 4)
        for scene in scenes:
            for kind in ("scans", "images"):
                (tmp_path / kind / scene).mkdir(parents=True)
            np.save(tmp_path / "scans" / scene / "0.npy", points.astype(np.float32))
            Image.fromarray(picture).save(tmp_path / "images" / scene / "0.png")
        about = {
            "sweeps": "scans/{scene}/{frame}.npy",
            "images": {"front": "images/{scene}/{frame}.png"},
            "calibration": write(tmp_path, model, named or distortion, **changes).name,
            "classes": {"road": 1},
        }
        (tmp_path / "dataset.yaml").write_text(json.dumps(about))
        return tmp_path

    return make


@pytest.mark.parametrize(("model", "distortion", "named"), LENSES)
def test_points_lie_on_the_dots_that_opencv_draws(folder, tmp_path, model, distortion, named):
    index = build_index(folder(model, distortion, named))
    index.save(tmp_path / "index")
    index = FrameIndex.load(tmp_path / "index")
    (picture,), failures = PictureSource(index=index, image_size=SIZE[::-1]).read([0])
    assert not failures
    frame = load_frame(index, 0, None)
    assert len(frame.projection_uv) > 10
    far = []
    for x, y in frame.projection_uv * SIZE:
        left, top = max(0, int(x) - 12), max(0, int(y) - 12)
        around = picture[0, top : int(y) + 13, left : int(x) + 13].astype(float)
        rows, columns = np.indices(around.shape)
        centre = np.array([(columns * around).sum(), (rows * around).sum()]) / around.sum() + [left, top]
        if 13 < x < SIZE[0] - 13 and 13 < y < SIZE[1] - 13:
            far.append(np.hypot(*(centre - [x, y])))
    assert len(far) > 6
    assert max(far) < 0.7


def test_a_lens_that_does_nothing_is_none(tmp_path):
    plain = read_folder_calibration(write(tmp_path, None, None))["front"]
    assert plain.lens is None
    assert read_folder_calibration(write(tmp_path, "radtan", [0] * 5))["front"].lens is None
    assert read_folder_calibration(write(tmp_path, "fisheye", [0] * 4))["front"].lens is not None


def test_scenes_may_have_lenses_of_their_own(folder, tmp_path):
    root = folder("pinhole", [-0.2, 0, 0, 0], scenes=("a", "b"))
    (root / "a.json").write_text((root / json.loads((root / "dataset.yaml").read_text())["calibration"]).read_text())
    (root / "b.json").write_text(write(root, None, None).read_text())
    about = json.loads((root / "dataset.yaml").read_text())
    (root / "dataset.yaml").write_text(json.dumps({**about, "calibration": "{scene}.json"}))
    index = build_index(root)
    assert index.lens_of(0).distortion == (-0.2, 0, 0, 0)
    assert index.lens_of(1) is None


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"model": "omni"}, ["omni", "fisheye"]),
        ({"model": "fisheye", "distortion": [-0.35, 0.12, 0, 0, 0]}, ["fisheye", "4", "-0.35"]),
        ({"model": "fisheye", "distortion": None}, ["distortion", "4"]),
        ({"distortion": [0.1] * 6}, ["distortion", "4 or 5 or 8"]),
        ({"distortion": {"k1": 0.1, "p3": 1}}, ["p3", "p1, p2"]),
        ({"distortion": "none"}, ["distortion", "none"]),
        ({"size": [640]}, ["size", "640"]),
    ],
)
def test_a_faulty_lens_is_named(tmp_path, changes, facts):
    with pytest.raises(DataError) as caught:
        read_folder_calibration(write(tmp_path, **{"model": "pinhole", "distortion": [0.1] * 4, **changes}))
    assert [fact for fact in ["front", *facts] if fact not in str(caught.value)] == []


def test_the_size_of_a_calibration_is_that_of_the_images(folder):
    with pytest.raises(DataError, match=r"960x720.*480x360"):
        build_index(folder("pinhole", [-0.2, 0, 0, 0], size=[960, 720]))


@pytest.mark.parametrize(
    ("model", "distortion", "radius"),
    [
        ("pinhole", [-0.9, 0, 0, 0], 0.6086),  # 1 - 2.7 r^2 = 0
        ("pinhole", [-0.4, 0, 0, 0], 0.9129),
        ("pinhole", [5.0, -9.0, 0, 0], 0.6247),
        ("rational_polynomial", [0, 0, 0, 0, 0, 3.0, 0, 0], 0.5774),  # r / (1 + 3 r^2)
        ("fisheye", [-0.9, 0, 0, 0], 0.6968),  # the tangent of the angle 0.6086
        ("fisheye", [0.05, -0.02, 0.003, -0.5], 1.1047),
    ],
)
def test_a_lens_that_folds_back_inside_the_image_is_refused(folder, model, distortion, radius):
    with pytest.raises(DataError) as caught:
        build_index(folder(model, distortion, scenes=("street-1",)))
    degrees = np.degrees(np.arctan(radius))
    facts = ["front", "street-1", f"{radius:.2f}", f"{degrees:.0f} degrees", "480x360"]
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_a_fold_outside_the_image_does_no_harm(folder):
    assert build_index(folder("pinhole", [-0.2, 0, 0, 0])).lenses  # 1 - 0.6 r^2 = 0 at 1.29, the corners are at 1.19
