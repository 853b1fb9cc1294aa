"""Frames with images and without labels: every head's classes for whole sweeps, from a run's cache or without one."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xd3d.errors import CacheError, ConfigError, DiskSpaceError
from xd3d.pipeline import jobs
from xd3d.pipeline.frame_choice import FrameChoice
from xd3d.pipeline.predict_frames import predict_frames
from xd3d.pipeline.runs import TrainedRun
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.kitti_calibration import read_calibration
from xd3d.stages.predict import inference
from xd3d.stages.train.batch import cloud_batch

SETTINGS = [
    *("model.preset=slim", "data.merge=nuscenes-16", "fusion.variant=image", "fusion.image_channels=8"),
    *("train.steps=2", "train.batch_size=2", "train.workers=0", "train.device=cpu"),
    *("extract.image_size=[48,80]", "extract.taps=[up1,rgb]", "extract.agents.count=4", "extract.device=cpu"),
]
MODALITIES = ("fused", "xm", "3d", "2d")


@pytest.fixture(scope="module")
def nuscenes(tmp_path_factory, tiny_nuscenes_root):
    """A workspace with a run on the tiny root, trained on what one camera sees."""
    workspace = Workspace(home=tmp_path_factory.mktemp("frames"))
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras=None, workspace=workspace)
    jobs.extract_features("nuscenes", "default", SETTINGS, None, retry_failed=False, workspace=workspace)
    jobs.train("default", SETTINGS, cached=True, run=None, workspace=workspace)
    return workspace


def expected_classes(workspace, row):
    """Class of every point of a sweep by modality, -1 for none, straight from the network."""
    run = TrainedRun.open(workspace, None)
    domain = replace(run.domain("all", "test"), frames=np.array([row]))
    (found,) = inference.predict_frames(run.network, domain)
    frame, whole = domain.load(0), replace(domain, every_point=True).load(0)
    cloud = cloud_batch(whole.points, "", replace(run.network.plan, taps=()))
    classes = {name: inference.cloud_logits(run.network, cloud).argmax(1).numpy() for name in MODALITIES}
    classes["2d"][:] = -1
    assert 0 < len(frame.points) < len(whole.points)
    both = found.probabilities_2d + found.probabilities_3d
    said = {"fused": found.probabilities_fused, "xm": both, "3d": found.probabilities_3d, "2d": found.probabilities_2d}
    for name, values in said.items():
        classes[name][frame.source_rows] = values.argmax(1)
    return classes


def test_every_head_labels_every_point_and_points_that_no_camera_sees_have_the_3d_heads_class(nuscenes, tmp_path):
    out = tmp_path / "labels"
    choice = FrameChoice(dataset="nuscenes", split="test", scenes=["scene-0003"])
    done = predict_frames(nuscenes, None, choice, out=out, probabilities=True, picture=True)
    index = TrainedRun.open(nuscenes, None).domains.index("nuscenes")
    rows = np.flatnonzero(index.frames.scene == "scene-0003")
    assert (done.exit_code, done.result["labelled"], done.result["sweeps"]) == (0, len(rows), len(rows))
    for row in rows:
        key, expected = str(index.frames.key[row]), expected_classes(nuscenes, row)
        for name, classes in expected.items():
            np.testing.assert_array_equal(np.fromfile(out / name / f"{key}.label", "<u4"), classes + 1)
            shares = np.load(out / name / f"{key}.npy")
            assert (shares.dtype, shares.shape) == (np.float16, (len(classes), 16))
            np.testing.assert_allclose(shares.sum(1, dtype=float), classes >= 0, atol=2e-2)
    facts = json.loads((out / "classes.json").read_text())
    assert [each["label"] for each in facts["classes"]] == list(range(17))
    assert facts["classes"][1]["name"] == "barrier"
    assert (facts["images"], facts["modalities"]) == (True, list(MODALITIES))
    with (out / "frames.csv").open() as file:
        sweeps = {line["frame"]: line["sweep"] for line in csv.DictReader(file)}
    assert sweeps == dict(zip(index.frames.key.tolist(), index.frames.sweep.tolist(), strict=True))
    assert Path(done.result["picture"]).read_bytes().startswith(b"\x89PNG")
    assert done.result["points"] == sum(len(expected_classes(nuscenes, row)["3d"]) for row in rows)


def test_a_second_call_predicts_what_is_missing_and_other_predictions_are_refused(nuscenes, tmp_path):
    first = FrameChoice(dataset="nuscenes", split="test", scenes=["scene-0003"])
    predict_frames(nuscenes, None, first, out=tmp_path)
    written = {path: path.read_bytes() for path in tmp_path.rglob("*.label")}
    lost = next(path for path in written if path.parent.name == "xm")
    lost.unlink()
    more = replace(first, scenes=["scene-00[01]*"])
    done = predict_frames(nuscenes, None, more, out=tmp_path)
    assert (done.result["sweeps"], done.result["kept"], done.result["labelled"]) == (6, 1, 5)
    assert {path: path.read_bytes() for path in written} == written
    with pytest.raises(ConfigError, match=r"fusion:.*product-prior.*sum.*--out"):
        predict_frames(nuscenes, None, first, out=tmp_path, fusion="sum")
    with pytest.raises(ConfigError, match=r"'scene-9'.*--scenes.*scene-0003"):
        predict_frames(nuscenes, None, replace(first, scenes=["scene-9"]), out=tmp_path)


def test_an_empty_list_of_scenes_is_refused_and_not_taken_for_all(nuscenes):
    with pytest.raises(ConfigError, match=r"--scenes.*scene-0003"):
        jobs.predict(dataset="nuscenes", split="test", scenes="", workspace=nuscenes)


def test_the_disk_is_looked_at_first(nuscenes, tmp_path, monkeypatch):
    choice = FrameChoice(dataset="nuscenes", split="test", scenes=["scene-0003"])
    forecast = predict_frames(nuscenes, None, choice, out=tmp_path / "out", probabilities=True, dry_run=True).result
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(DiskSpaceError, match=r"2 sweeps.*--out"):
        predict_frames(nuscenes, None, choice, out=tmp_path / "out", probabilities=True)
    monkeypatch.undo()
    predict_frames(nuscenes, None, choice, out=tmp_path / "out", probabilities=True)
    written = sum(path.stat().st_size for kind in MODALITIES for path in (tmp_path / "out" / kind).iterdir())
    assert written == pytest.approx(forecast["bytes_left"], rel=0.05)


def test_raw_ids_are_those_of_the_data_set_or_of_the_source_and_clouds_are_coloured(nuscenes, unlabelled, tmp_path):
    choice = FrameChoice(dataset="nuscenes", split="test", scenes=["scene-0003"])
    predict_frames(nuscenes, None, choice, out=tmp_path / "train")
    predict_frames(nuscenes, None, choice, out=tmp_path / "raw", ids="raw", colour=True)
    facts = json.loads((tmp_path / "raw/classes.json").read_text())
    ids = {each["name"]: each["label"] for each in facts["classes"]}
    assert (ids["car"], ids["barrier"], ids["vegetation"], ids["unlabelled"]) == (17, 9, 30, 0)
    table = np.array([each["label"] for each in facts["classes"]])
    for path in (tmp_path / "train").rglob("*.label"):
        other = tmp_path / "raw" / path.relative_to(tmp_path / "train")
        np.testing.assert_array_equal(np.fromfile(other, "<u4"), table[np.fromfile(path, "<u4")])
    clouds = list((tmp_path / "raw").rglob("*.labels.ply"))
    assert {path.parent.name for path in clouds} == {"fused"}
    assert len(clouds) == 2
    folder = FrameChoice(dataset="folder", root=unlabelled)
    predict_frames(nuscenes, None, folder, out=tmp_path / "mine", ids="raw", online=True)
    facts = json.loads((tmp_path / "mine/classes.json").read_text())
    assert "nuscenes" in facts["ids"]
    assert {each["name"]: each["label"] for each in facts["classes"]} == ids
    names = ", ".join(f"{name}: {number}" for number, name in enumerate(name for name in ids if name != "unlabelled"))
    description = unlabelled / "dataset.yaml"
    description.write_text(f"{description.read_text()}classes: {{{names}}}\n")
    predict_frames(nuscenes, None, folder, out=tmp_path / "described", ids="raw", online=True)
    facts = json.loads((tmp_path / "described/classes.json").read_text())
    labels = {each["name"]: each["label"] for each in facts["classes"]}
    assert (labels["barrier"], labels["vegetation"], labels["unlabelled"]) == (0, 15, 65535)
    np.testing.assert_array_equal(
        np.fromfile(tmp_path / "described/2d/000000.label", "<u4") == 65535,
        np.fromfile(tmp_path / "mine/2d/000000.label", "<u4") == 0,
    )


@pytest.fixture
def unlabelled(twin_of, tmp_path) -> Path:
    """A folder with sweeps and images and no label file, whose description names no class."""
    folder, root = twin_of("semantickitti") / "dataset/sequences/11", tmp_path / "mine"
    shutil.copytree(folder / "velodyne", root / "scans")
    shutil.copytree(folder / "image_2", root / "images")
    camera = read_calibration(folder / "calib.txt")["image_2"]
    matrices = {name: np.asarray(value).tolist() for name, value in camera._asdict().items()}
    (root / "calibration.json").write_text(json.dumps({"front": matrices}))
    (root / "dataset.yaml").write_text(
        'sweeps: "scans/{frame}.bin"\nimages: {front: "images/{frame}.png"}\ncalibration: calibration.json\n'
    )
    return root


def test_a_folder_without_labels_is_predicted_on_the_way_and_a_broken_frame_is_named(nuscenes, unlabelled, tmp_path):
    for name in ("scans/000001.bin", "images/000001.png"):
        shutil.copy(unlabelled / name.replace("1.", "0."), unlabelled / name)
    choice, out = FrameChoice(dataset="folder", root=unlabelled), tmp_path / "out"
    with pytest.raises(CacheError, match="--online"):
        predict_frames(nuscenes, None, choice, out=out)
    (unlabelled / "images/000000.png").write_bytes((unlabelled / "images/000001.png").read_bytes()[:200])
    done = predict_frames(nuscenes, None, choice, out=out, online=True)
    assert (done.exit_code, done.result["labelled"]) == (1, 1)
    (failed,) = done.result["failed"]
    assert Path(failed["file"]).name == "000000.bin"
    assert "000000.png" in failed["reason"]
    labels = {name: np.fromfile(out / name / "000001.label", "<u4") for name in MODALITIES}
    points = (unlabelled / "scans/000001.bin").stat().st_size // 16
    assert {len(each) for each in labels.values()} == {points}
    assert all(labels[name].min() >= 1 for name in ("fused", "xm", "3d"))
    assert 0 < (labels["2d"] > 0).sum() < points
    assert not (nuscenes.home / "index/folder").exists()
    shutil.copy(unlabelled / "images/000001.png", unlabelled / "images/000000.png")
    again = predict_frames(nuscenes, None, choice, out=out, online=True)
    assert (again.exit_code, again.result["labelled"], again.result["kept"]) == (0, 1, 1)


def test_a_prepared_folder_is_predicted_from_its_cache_by_the_command(nuscenes, unlabelled, tmp_path, xd3d):
    home = {"XD3D_HOME": str(nuscenes.home)}
    assert jobs.prepare("folder", unlabelled, version=None, cameras=None, workspace=nuscenes).exit_code == 0
    jobs.extract_features("folder", "default", SETTINGS, None, retry_failed=False, workspace=nuscenes)
    done = xd3d("predict", str(unlabelled), "--out", "cached", "--json", **home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["labelled"] == 1
    online = predict_frames(
        nuscenes, None, FrameChoice(dataset="folder"), out=tmp_path / "online", online=True, fusion="product-prior"
    )
    assert online.result["labelled"] == 1
    one, other = (np.fromfile(tmp_path / name / "fused/000000.label", "<u4") for name in ("cached", "online"))
    assert (one == other).mean() > 0.99  # the cache stores float16
    wrong = xd3d("predict", str(unlabelled / "scans"), "--online", "--split", "val", **home)
    assert wrong.returncode == 2
    assert "--split, --online" in wrong.stderr
    shutil.rmtree(nuscenes.home / "index/folder")


def test_a_folder_is_predicted_though_the_one_that_was_prepared_is_gone(nuscenes, unlabelled, tmp_path):
    prepared = Path(shutil.copytree(unlabelled, tmp_path / "earlier"))
    assert jobs.prepare("folder", prepared, workspace=nuscenes).exit_code == 0
    shutil.rmtree(prepared)
    try:
        done = predict_frames(
            nuscenes, None, FrameChoice(dataset="folder", root=unlabelled), out=tmp_path / "out", online=True
        )
    finally:
        shutil.rmtree(nuscenes.home / "index/folder")
    assert done.result["labelled"] == 1


def test_a_folder_given_by_dots_has_labels_of_its_own_name(nuscenes, unlabelled, tmp_path, monkeypatch):
    monkeypatch.chdir(unlabelled / "scans")
    done = predict_frames(nuscenes, None, FrameChoice(dataset="folder", root=Path("..")), out=None, online=True)
    assert Path(done.result["out"]).name == "mine"


def test_a_frame_whose_name_is_not_utf_8_is_labelled(nuscenes, unlabelled, tmp_path):
    for kind in ("scans/000000.bin", "images/000000.png"):
        file = unlabelled / kind
        file.rename(file.with_name(os.fsdecode(b"caf\xe9") + file.suffix))
    choice, out = FrameChoice(dataset="folder", root=unlabelled), tmp_path / "out"
    assert predict_frames(nuscenes, None, choice, out=out, online=True).result["labelled"] == 1
    assert predict_frames(nuscenes, None, choice, out=out, online=True).result["kept"] == 1
    assert b"caf\xe9,scans/caf\xe9.bin" in (out / "frames.csv").read_bytes()


def test_a_submission_of_which_every_frame_failed_names_the_frames(nuscenes, broken_root, tmp_path):
    index = TrainedRun.open(nuscenes, None).domains.index("nuscenes")
    row = int(np.flatnonzero(index.frames.scene == "scene-0003")[0])
    root = broken_root()
    (root / str(index.frames.sweep[row])).unlink()
    choice = FrameChoice(dataset="nuscenes", root=root, scenes=[str(index.frames.key[row])], official=True)
    done = predict_frames(nuscenes, None, choice, out=tmp_path / "out", submission=True)
    assert (done.exit_code, done.result["zip"], len(done.result["failed"])) == (1, None, 1)
