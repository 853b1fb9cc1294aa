"""Predictions for the official evaluators: the devkit reads them and gives our score."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from xd3d.errors import ConfigError, DataError
from xd3d.pipeline import jobs
from xd3d.pipeline.frame_choice import FrameChoice
from xd3d.pipeline.predict_frames import predict_frames
from xd3d.pipeline.workspace import Workspace

VERSION = "v1.0-trainval"
SETTINGS = [
    *("fusion.variant=3d-only", "data.points=all", "model.preset=slim", "data.merge=nuscenes-16"),
    *("train.steps=2", "train.batch_size=2", "train.workers=0", "train.device=cpu"),
]
WITH_IMAGES = [
    *("fusion.variant=image", *SETTINGS[1:], "fusion.image_channels=8"),
    *("extract.image_size=[48,80]", "extract.taps=[up1,rgb]", "extract.agents.count=4", "extract.device=cpu"),
]


def train_run(home, root, settings):
    workspace = Workspace(home=home)
    jobs.prepare("nuscenes", root, version=None, cameras=None, workspace=workspace)
    if settings[0] != SETTINGS[0]:
        jobs.extract_features("nuscenes", "default", settings, None, retry_failed=False, workspace=workspace)
    jobs.train("default", settings, cached=True, run=None, workspace=workspace)
    return workspace


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_nuscenes_root):
    """A workspace whose last run tells the 16 classes apart in whole sweeps."""
    return train_run(tmp_path_factory.mktemp("whole sweeps"), tiny_nuscenes_root, SETTINGS)


@pytest.fixture(scope="module")
def with_images(tmp_path_factory, tiny_nuscenes_root):
    """The same with a camera."""
    return train_run(tmp_path_factory.mktemp("sweeps and images"), tiny_nuscenes_root, WITH_IMAGES)


def score(workspace, out, **options):
    given = {"split": None, "domain": "all", "absent": None, **options}
    return jobs.evaluate(None, export=out, **given, workspace=workspace).result


@pytest.fixture
def official(tiny_nuscenes_root, monkeypatch):
    """The devkit on the tiny root."""
    return open_devkit(tiny_nuscenes_root, VERSION, monkeypatch)


def open_devkit(root, version, monkeypatch):
    """The devkit, its official splits cut to the scenes that are there."""
    from nuscenes.eval.lidarseg import utils
    from nuscenes.nuscenes import NuScenes

    devkit = NuScenes(version=version, dataroot=str(root), verbose=False)
    there = {scene["name"] for scene in devkit.scene}
    splits = {name: sorted(there & set(scenes)) for name, scenes in utils.create_splits_scenes().items()}
    monkeypatch.setattr(utils, "create_splits_scenes", lambda verbose=False: splits)
    return devkit


def evaluate_officially(devkit, out):
    from nuscenes.eval.lidarseg.evaluate import LidarSegEval

    evaluator = LidarSegEval(devkit, str(out), eval_set="val")
    with np.errstate(invalid="ignore"):
        return evaluator.evaluate()


def test_the_devkit_takes_the_submission_and_gives_our_score(trained, official, tmp_path):
    from nuscenes.eval.lidarseg.validate_submission import validate_submission

    ours = score(trained, tmp_path)
    assert len(list((tmp_path / "lidarseg" / "val").iterdir())) == ours["frames"] == 6
    validate_submission(official, str(tmp_path), "val")
    assert json.loads((tmp_path / "val/submission.json").read_text())["meta"]["use_lidar"] is True
    theirs = evaluate_officially(official, tmp_path)
    assert theirs["miou"] == pytest.approx(ours["miou"]["fused"], abs=1e-6)  # the devkit divides in float32
    for name, values in ours["iou"].items():
        expected = theirs["iou_per_class"][name]
        assert (values["fused"] is None) == np.isnan(expected)
        assert values["fused"] is None or values["fused"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("rule", "reading"), [("sum", "xm"), (None, "fused")])
def test_the_devkit_gives_our_score_of_sweeps_and_images_together(with_images, official, tmp_path, rule, reading):
    ours = score(with_images, tmp_path / "out", fusion=rule)
    meta = json.loads((tmp_path / "out/val/submission.json").read_text())["meta"]
    assert (meta["use_camera"], meta["use_external"]) == (True, True)
    assert ours["miou"][reading] != ours["miou"]["3d"]
    assert evaluate_officially(official, tmp_path / "out")["miou"] == pytest.approx(ours["miou"][reading], abs=1e-6)


@pytest.mark.parametrize("online", [False, True])
def test_the_devkit_gives_the_score_of_evaluate_for_what_predict_writes(with_images, official, tmp_path, online):
    from nuscenes.eval.lidarseg.validate_submission import validate_submission

    ours = score(with_images, None)
    choice = FrameChoice(dataset="nuscenes", official=True, split="val")
    done = predict_frames(with_images, None, choice, out=tmp_path / "out", submission=True, online=online)
    assert (done.exit_code, done.result["labelled"]) == (0, ours["frames"])
    with zipfile.ZipFile(done.result["zip"]) as archive:
        archive.extractall(tmp_path / "unpacked")
    validate_submission(official, str(tmp_path / "unpacked"), "val")
    theirs = evaluate_officially(official, tmp_path / "unpacked")
    # online features are not rounded to the cache's float16
    assert theirs["miou"] == pytest.approx(ours["miou"]["fused"], abs=1e-3 if online else 1e-6)
    assert ours["miou"]["fused"] != ours["miou"]["3d"]


def test_the_rule_changes_what_is_written_and_two_rules_are_not_mixed(with_images, tmp_path):
    written = {}
    for rule in ("product-prior", "sum"):
        card = score(with_images, tmp_path / rule, fusion=rule)
        assert card["protocol"]["fusion"] == rule
        files = sorted((tmp_path / rule).glob("lidarseg/val/*.bin"))
        assert len(files) == 6
        written[rule] = [path.read_bytes() for path in files]
    assert written["product-prior"] != written["sum"]
    with pytest.raises(ConfigError, match=r"xM.*product-prior.*--export"):
        score(with_images, tmp_path / "sum")


def test_part_of_a_split_is_no_submission_until_the_rest_is_there(trained, tmp_path, caplog):
    score(trained, tmp_path, domain="usa")
    assert not (tmp_path / "val/submission.json").exists()
    assert "4 of 6 keyframes of val are missing" in caplog.text
    score(trained, tmp_path, domain="singapore")
    assert (tmp_path / "val/submission.json").exists()


def test_predictions_that_someone_else_made_stay(trained, tmp_path):
    theirs = tmp_path / "lidarseg" / "val" / "0123_lidarseg.bin"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(ConfigError, match=r"0123_lidarseg\.bin .*--export"):
        score(trained, tmp_path)
    assert theirs.read_bytes() == b"theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["lidarseg"]


def test_predictions_of_two_networks_are_not_mixed(trained, tmp_path, tiny_nuscenes_root):
    score(trained, tmp_path / "out")
    other = train_run(tmp_path / "home", tiny_nuscenes_root, [*SETTINGS, "train.seed=2"])
    with pytest.raises(ConfigError, match=r"network.*--export"):
        score(other, tmp_path / "out")


def test_merged_classes_are_written_as_their_first_and_are_no_submission(
    tmp_path, tiny_nuscenes_root, official, monkeypatch, caplog
):
    from nuscenes.eval.lidarseg.utils import LidarsegClassMapper

    workspace = train_run(tmp_path / "home", tiny_nuscenes_root, [*SETTINGS, "data.merge=nuscenes-6"])
    ours = score(workspace, tmp_path / "out")
    assert "nuscenes-6 has 6 classes, not 16" in caplog.text
    assert not (tmp_path / "out/val/submission.json").exists()
    facts = json.loads((tmp_path / "out/export.json").read_text())
    numbers = {entry["name"]: entry["number"] for entry in facts["classes"]}
    assert numbers["vehicle"] == 4  # car
    assert numbers["driveable_surface"] == 11

    def merged(mapper):
        vehicles = ("bicycle", "bus", "car", "construction", "motorcycle", "trailer", "truck")
        kept = set(numbers) | {"car"}
        names = LidarsegClassMapper.original(mapper)
        named = {
            fine: "car" if fine.startswith(tuple(f"vehicle.{v}" for v in vehicles)) else names[fine] for fine in names
        }
        return {fine: name if name in kept else "ignore" for fine, name in named.items()}

    monkeypatch.setattr(LidarsegClassMapper, "original", LidarsegClassMapper.get_fine2coarse, raising=False)
    monkeypatch.setattr(LidarsegClassMapper, "get_fine2coarse", merged)
    monkeypatch.setattr(LidarsegClassMapper, "check_mapping", lambda mapper: None)
    theirs = evaluate_officially(official, tmp_path / "out")
    assert theirs["miou"] == pytest.approx(ours["miou"]["fused"], abs=1e-6)


@pytest.fixture
def unlabelled_version(tiny_nuscenes_root, tmp_path):
    """The tiny root as v1.0-test: official test scenes, and no labels."""
    root = tmp_path / "nuscenes"
    shutil.copytree(tiny_nuscenes_root, root)
    (root / VERSION).rename(root / "v1.0-test")
    scenes = json.loads((root / "v1.0-test/scene.json").read_text())
    for number, scene in enumerate(scenes):
        scene["name"] = f"scene-{77 + number:04d}"
    (root / "v1.0-test/scene.json").write_text(json.dumps(scenes))
    (root / "v1.0-test/lidarseg.json").write_text("[]")
    shutil.rmtree(root / "lidarseg")
    (root / "lidarseg/v1.0-test").mkdir(parents=True)
    sweep = min(root.glob("samples/LIDAR_TOP/*.bin"))  # rays without return, which the benchmark scores too
    rows = np.fromfile(sweep, "<f4").reshape(-1, 5)
    rows[::20, :3] = 0
    rows.tofile(sweep)
    return root


def copied(workspace, home):
    """A copy of a workspace, to prepare other data in."""
    shutil.copytree(workspace.home, home)
    return Workspace(home=home)


def test_the_devkit_takes_a_submission_for_the_test_version_made_with_images_and_without_labels(
    with_images, unlabelled_version, tmp_path, monkeypatch
):
    from nuscenes.eval.lidarseg.validate_submission import validate_submission

    workspace = copied(with_images, tmp_path / "home")
    assert (
        jobs.prepare("nuscenes", unlabelled_version, version="v1.0-test", cameras=None, workspace=workspace).exit_code
        == 0
    )
    extracted = jobs.extract_features("nuscenes", "default", WITH_IMAGES, None, retry_failed=False, workspace=workspace)
    assert (extracted.exit_code, extracted.result["done"]) == (0, 18)
    done = predict_frames(
        workspace, None, FrameChoice(dataset="nuscenes", official=True), out=tmp_path / "out", submission=True
    )
    assert (done.exit_code, done.result["labelled"]) == (0, 18)
    devkit = open_devkit(unlabelled_version, "v1.0-test", monkeypatch)
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(done.result["zip"]) as archive:
        archive.extractall(unpacked)
    validate_submission(devkit, str(unpacked), "test")
    assert {path.name for path in unpacked.iterdir()} == {"lidarseg", "test"}
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out/lidarseg/test").iterdir()}
    with pytest.raises(DataError, match="--export"):
        score(workspace, None, split="test")
    exported = score(workspace, tmp_path / "exported", split="test")
    assert (exported["points"], exported["frames"], exported["miou"]["fused"]) == (0, 18, None)
    assert {path.name: path.read_bytes() for path in (tmp_path / "exported/lidarseg/test").iterdir()} == kept
    validate_submission(devkit, str(tmp_path / "exported"), "test")


def test_a_test_version_needs_no_table_of_labels(unlabelled_version, tmp_path):
    (unlabelled_version / "v1.0-test/lidarseg.json").unlink()
    categories = json.loads((unlabelled_version / "v1.0-test/category.json").read_text())
    for row in categories:
        del row["index"]
    (unlabelled_version / "v1.0-test/category.json").write_text(json.dumps(categories))
    workspace = Workspace(home=tmp_path / "home")
    done = jobs.prepare("nuscenes", unlabelled_version, version=None, cameras=None, workspace=workspace)
    assert (done.exit_code, done.result["frames"]) == (0, 18)


def validate_kitti(archive, dataset):
    """The rules that semantic-kitti-api documents: the folders of 11 to 21, a file per scan, 4 bytes per point."""
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
        assert "sequences/" in names
        for sequence in range(11, 22):
            folder = f"sequences/{sequence}/predictions/"
            assert {f"sequences/{sequence}/", folder} <= names
            scans = sorted((dataset / f"sequences/{sequence}/velodyne").iterdir())
            assert {Path(name).stem for name in names if name.startswith(folder) and name != folder} == {
                scan.stem for scan in scans
            }
            for scan in scans:
                labels = np.frombuffer(file.read(f"{folder}{scan.stem}.label"), "<u4")
                assert len(labels) == scan.stat().st_size // 16
                yield from np.unique(labels).tolist()


@pytest.fixture
def kitti(twin_of, tmp_path):
    """A root of sequences 08 and 11 to 21, and a workspace with a run of LiDAR alone on the twin."""
    root = tmp_path / "kitti"
    for sequence in (8, *range(11, 22)):
        source = twin_of("semantickitti") / "dataset/sequences" / f"{min(sequence, 11):02d}"
        shutil.copytree(source, root / "dataset/sequences" / f"{sequence:02d}", copy_function=os.link)
    workspace = Workspace(home=tmp_path / "home")
    jobs.prepare("semantickitti", twin_of("semantickitti"), version=None, cameras=None, workspace=workspace)
    shift = ["data.source={dataset: semantickitti}", "data.target={dataset: semantickitti}"]
    settings = [*SETTINGS, "data.merge=semantickitti-19", *shift]
    jobs.train("default", settings, cached=True, run=None, workspace=workspace)
    assert jobs.prepare("semantickitti", root, version=None, cameras=None, workspace=workspace).exit_code == 0
    return workspace, root / "dataset"


def test_sequences_11_to_21_are_written_as_the_benchmark_takes_them(kitti, tmp_path, caplog):
    workspace, dataset = kitti
    choice, out = FrameChoice(dataset="semantickitti", official=True), tmp_path / "out"
    one = FrameChoice(dataset="semantickitti", official=True, scenes=["11"])
    predict_frames(workspace, None, one, out=out, submission=True)
    assert "12, 13, 14, 15, 16, 17, 18, 19, 20, 21 are missing" in caplog.text
    assert "of 11 (1 of 921)" in caplog.text
    done = predict_frames(workspace, None, choice, out=out, submission=True)
    assert (done.exit_code, done.result["kept"], done.result["labelled"]) == (0, 1, 10)
    numbers = set(validate_kitti(done.result["zip"], dataset))
    assert numbers <= {10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81}
    val = FrameChoice(dataset="semantickitti", official=True, split="val")
    other = predict_frames(workspace, None, val, out=tmp_path / "val", submission=True).result
    with zipfile.ZipFile(other["zip"]) as archive:
        assert {name.split("/")[1] for name in archive.namelist() if name.count("/") > 1} == {"08"}
    exported = jobs.evaluate(
        None, split="test", domain="official", absent=None, export=tmp_path / "exported", workspace=workspace
    )
    assert exported.result["frames"] == 11
    assert len(list((tmp_path / "exported/sequences/21/predictions").iterdir())) == 1


def test_a_run_of_other_classes_is_reported_before_it_predicts(trained, tmp_path, monkeypatch):
    from xd3d.stages.datasets.labels import get_merge

    choice = FrameChoice(dataset="nuscenes", official=True, split="val")
    monkeypatch.setattr("xd3d.pipeline.predict_frames.index_merge", lambda *_: get_merge("nuscenes-6", "nuscenes"))
    with pytest.raises(ConfigError, match=r"16 classes.*6 apart.*nuscenes-16"):
        predict_frames(trained, None, choice, out=tmp_path / "out", submission=True)
    assert not (tmp_path / "out").exists()
