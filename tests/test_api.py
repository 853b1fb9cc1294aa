"""The Python API: examples of the docstrings, options as the commands have them, and predictions from arrays."""

import doctest
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xd3d
from PIL import Image
from xd3d.errors import DataError, RunError
from xd3d.pipeline.loaded_run import LoadedRun
from xd3d.stages.datasets.readers import READERS
from xd3d.stages.evaluate.confusion import confusion_matrix
from xd3d.stages.extract.online import OnlineExtractor

PAGE = Path(__file__).resolve().parents[1] / "docs/python.md"
#: The functions of a first session, in order; their examples take seconds.
SESSION = (
    *("prepare", "extract_features", "open_cache", "pretrain"),
    *("train", "evaluate", "pseudo_label", "predict", "load_run"),
)
LONG = ("synthesize", "report")
#: Options of commands that are one argument of the functions.
JOINED = {"device": "machine", "workers": "sharing", "scheduler": "sharing", "shard": "sharing", "runs": "other"}
OF_THE_MACHINE = ("evaluate", "pseudo_label", "predict", "report")

WITHOUT_STAGE_ONE = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"diffusers", "transformers", "huggingface_hub", "zarr", "numcodecs", "nuscenes"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Forbidden())
import numpy, xd3d
points = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], xd3d.load_run("first", workspace=sys.argv[1]).predict(points).labels["fused"])
"""


def run_example(function):
    """Run the example in the docstring of a function."""
    name = function.__name__
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, module=False, globs={"xd3d": xd3d})
    said = []
    done = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert done.attempted, name
    assert not done.failed, "".join(said)


@pytest.fixture(scope="module", params=["tiny", pytest.param("city", marks=pytest.mark.slow)])
def session(request, tiny_nuscenes_root, tmp_path_factory):
    """The folder and the workspace of a session that ran the example of every function."""
    folder = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XD3D_HOME", str(folder / "work"))
        if request.param == "city":
            run_example(xd3d.synthesize)
        else:
            shutil.copytree(tiny_nuscenes_root, folder / "city")
        for name in SESSION:
            run_example(getattr(xd3d, name))
        run_example(LoadedRun.predict)
        if request.param == "city":
            run_example(xd3d.report)
    return SimpleNamespace(folder=folder, workspace=folder / "work")


@pytest.fixture(scope="module")
def run(session):
    return xd3d.load_run("first", workspace=session.workspace)


def arrays(index, row):
    """The points, with an intensity, and the images of a frame, as the project reads them."""
    points = READERS[index.dataset].read_sweep(index, row).points
    images = {}
    for image in index.images_of(row):
        with Image.open(index.root / str(index.images.path[image])) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        calibration = index.images.intrinsics[image], index.images.camera_from_lidar[image]
        images[str(index.images.camera[image])] = (pixels, *calibration)
    return np.column_stack([points, np.ones(len(points), np.float32)]), images


def test_the_session_has_an_example_of_every_function():
    assert {*SESSION, *LONG} == set(xd3d.__all__) - {"__version__"}


def test_importing_the_package_imports_no_library():
    code = "import sys, xd3d; dir(xd3d); print({'torch', 'numpy', 'typer', 'pydantic'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert set(xd3d.__all__) <= set(dir(xd3d))
    with pytest.raises(AttributeError, match="'trian'"):
        xd3d.trian  # noqa: B018


@pytest.mark.parametrize(
    "name", [name for name in xd3d.__all__ if name not in ("__version__", "open_cache", "load_run")]
)
def test_each_command_is_a_function_with_its_name_and_options(name):
    import typer
    from xd3d.pipeline.cli import app

    command = typer.main.get_command(app).commands[name.replace("_", "-")]
    options = {parameter.name for parameter in command.params} - {"as_json"}
    if name in OF_THE_MACHINE:
        options = {"machine" if option == "overrides" else option for option in options}
    function = getattr(xd3d, name)
    assert function.__name__ == name
    assert {JOINED.get(option, option) for option in options} <= inspect.signature(function).parameters.keys()


def test_arrays_are_predicted_as_the_command_predicts_and_the_evaluation_scores(session, run):
    domain = run.domain("target", "test")
    names = ("fused", "xm", "3d", "2d")
    confusion = {name: np.zeros((6, 7), np.int64) for name in names}
    for position, row in enumerate(domain.frames.tolist()):
        points, images = arrays(domain.index, row)
        found = run.predict(points, images)
        for name in names:
            stored = np.fromfile(session.folder / f"labels/{name}/{domain.key(position)}.label", "<u4")
            np.testing.assert_array_equal(found.labels[name], stored.astype(int) - 1)
            shares = found.probabilities[name]
            assert shares.dtype == np.float32
            predicted = found.labels[name] >= 0
            np.testing.assert_array_equal(shares.argmax(1)[predicted], found.labels[name][predicted])
            np.testing.assert_allclose(shares.sum(1), predicted, atol=1e-5)
        assert (found.decisive, found.classes) == ("fused", run.classes)
        np.testing.assert_array_equal(found.names, np.array(run.classes)[found.labels["fused"]])
        frame = domain.load(position)
        for name, counts in confusion.items():
            counts += confusion_matrix(frame.labels, found.labels[name][frame.source_rows], 6)
    scored = xd3d.evaluate("first", workspace=session.workspace).result["confusion"]
    assert {name: counts.tolist() for name, counts in confusion.items()} == scored


def test_points_alone_are_predicted_as_a_sweep_alone_without_the_libraries_of_stage_one(session, run, tmp_path):
    index = run.domains.index("nuscenes")
    points, images = arrays(index, 0)
    np.save(tmp_path / "points.npy", points)
    command = [sys.executable, "-c", WITHOUT_STAGE_ONE, str(session.workspace), "points.npy", "found.npy"]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    xd3d.predict(tmp_path / "points.npy", "first", out=tmp_path / "out", workspace=session.workspace)
    stored = np.fromfile(tmp_path / "out/points.label", "<u4").astype(int) - 1
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), stored)
    found = run.predict(points)
    assert found.labels.keys() == {"fused", "3d"}
    np.testing.assert_array_equal(found.labels["3d"], stored)
    unseen = run.predict(points, images).labels["2d"] < 0
    assert 0 < unseen.sum() < len(points)


def test_a_point_that_is_not_finite_has_no_class_and_changes_no_other(run):
    points, images = arrays(run.domains.index("nuscenes"), 0)
    broken = np.concatenate([points, np.full((1, 4), np.nan, np.float32)])
    whole, found = run.predict(points, images), run.predict(broken, images)
    for name, labels in found.labels.items():
        assert labels[-1] == -1
        np.testing.assert_array_equal(labels[:-1], whole.labels[name])
    assert found.names[-1] == ""


def test_the_image_model_is_opened_once(session, monkeypatch):
    opened, make = [], OnlineExtractor.__init__
    monkeypatch.setattr(OnlineExtractor, "__init__", lambda self, **given: opened.append(1) or make(self, **given))
    fresh = xd3d.load_run("first", workspace=session.workspace)
    index = fresh.domains.index("nuscenes")
    first, second = (arrays(index, row) for row in (0, 1))
    fresh.predict(first[0])
    assert not opened
    once = fresh.predict(*first).labels["2d"]
    fresh.predict(*second)
    np.testing.assert_array_equal(fresh.predict(*first).labels["2d"], once)
    assert len(opened) == 1


def test_an_image_that_shows_no_point_leaves_the_3d_heads_classes_and_is_told(run, caplog):
    points, images = arrays(run.domains.index("nuscenes"), 0)
    ((camera, (picture, intrinsics, pose)),) = images.items()
    away = np.diag([-1.0, 1, -1, 1]) @ pose
    ahead = points[(points[:, :3] @ pose[2, :3] + pose[2, 3]) > 0]
    with caplog.at_level("WARNING", "xd3d"):
        found = run.predict(ahead, {camera: (picture, intrinsics, away)})
    assert "camera_from_lidar" in caplog.text
    assert (found.labels["2d"] == -1).all()
    np.testing.assert_array_equal(found.labels["3d"], run.predict(ahead).labels["3d"])


def test_the_blocks_of_the_page_run_in_order(session, run, monkeypatch):
    points, images = arrays(run.domains.index("nuscenes"), 0)
    picture, intrinsics, pose = images["CAM_FRONT"]
    names = {"points": points, "picture": picture, "intrinsics": intrinsics, "camera_from_lidar": pose, "run": "first"}
    monkeypatch.chdir(session.folder)
    monkeypatch.setenv("XD3D_HOME", str(session.workspace))
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    expected = run.predict(points, images)
    np.testing.assert_array_equal(names["prediction"].names, expected.names)
    assert (names["probability"] > 1 / 7).all()
    assert names["scores"] == xd3d.evaluate("first").result["miou"]
    np.testing.assert_array_equal(names["features"].maps["up1"].shape[0], 2)


GOOD = np.zeros((90, 160, 3), np.uint8), np.array([[96.0, 0, 80], [0, 96, 45], [0, 0, 1]]), np.eye(4)


@pytest.mark.parametrize(
    ("points", "image", "words"),
    [
        (np.zeros((5, 2), np.float32), GOOD, r"points.*\[5, 2\]"),
        (np.zeros((5, 4), int), GOOD, r"points.*\[5, 4\] of int64"),
        (np.zeros((0, 4)), GOOD, "is empty"),
        (np.full((5, 4), np.nan), GOOD, "finite"),
        (None, GOOD[0], "'CAM_FRONT' lacks its calibration"),
        (None, GOOD[:2], "'CAM_FRONT' lacks its calibration.*2 values"),
        (None, (*GOOD[:2], None), "'CAM_FRONT' lacks its calibration"),
        (None, (GOOD[0] / 255, *GOOD[1:]), r"'CAM_FRONT' is \[90, 160, 3\] of float64.*uint8"),
        (None, (GOOD[0].transpose(2, 0, 1), *GOOD[1:]), r"'CAM_FRONT' is \[3, 90, 160\]"),
        (None, (GOOD[0], np.eye(4), GOOD[2]), r"intrinsics of camera 'CAM_FRONT'.*\[4, 4\]"),
        (None, (GOOD[0], GOOD[1].T, GOOD[2]), "'CAM_FRONT'.*intrinsics.*transposed"),
        (None, (*GOOD[:2], 2 * np.eye(4)), "'CAM_FRONT'.*last row"),
    ],
)
def test_arrays_of_other_shapes_and_wrong_calibrations_are_refused(run, points, image, words):
    given = np.random.default_rng(0).normal(0, 9, (50, 4)) if points is None else points
    with pytest.raises(DataError, match=f"(?s){words}"):
        run.predict(given, {"CAM_FRONT": image})


def test_a_network_that_needs_images_says_so(session, run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "refine")
    record = json.loads((run.folder / "run.json").read_text())
    record["fusion"] |= {"queries": "agents", "head": "refine"}
    (tmp_path / "refine/run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="needs a camera"):
        xd3d.load_run(tmp_path / "refine", workspace=session.workspace).predict(np.ones((5, 3)))


def test_names_of_cameras_are_free_where_the_network_tells_none_apart_and_keys_seed_the_noise(run):
    from xd3d.stages.datasets.memory import MemoryIndex

    points, images = arrays(run.domains.index("nuscenes"), 0)
    named = run.predict(points, {"front": images["CAM_FRONT"]})
    np.testing.assert_array_equal(named.labels["2d"], run.predict(points, images).labels["2d"])
    index = MemoryIndex.of(points, images, dataset="nuscenes", cameras=("CAM_FRONT",), keys={"CAM_FRONT": "a token"})
    assert index.images.key.tolist() == ["a token"]
