"""The example of docs/data/folder.md, from a folder of one's own to a score."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from xd3d.pipeline import jobs
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.kitti_calibration import read_calibration
from xd3d.stages.datasets.labels import get_merge

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDE = (DOCS / "data/folder.md").read_text(encoding="utf-8")
ADAPTATION = (DOCS / "adaptation.md").read_text(encoding="utf-8").partition("## A drive of your own")[2]
DESCRIPTION, CONFIG = re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL)
SCENES = {"00": "north-1", "01": "north-2", "07": "south-1", "08": "south-2"}
TINY = (
    "extract.taps=[up1,rgb]",
    "extract.image_size=[48,64]",
    "extract.agents.count=4",
    "model.preset=slim",
    "model.voxel_size=0.2",
    "fusion.tokens=4",
    "fusion.query_channels=16",
    "train.batch_size=1",
    "train.workers=0",
    "train.steps=1",
    "train.milestones=[1]",
)


@pytest.fixture
def own_folder(twin_of, tmp_path) -> Path:
    """The files that the example describes."""
    twin, root = twin_of("semantickitti"), tmp_path / "mine"
    for sequence, scene in SCENES.items():
        folder = twin / "dataset/sequences" / sequence
        for kind, name in (("velodyne", "scans"), ("labels", "labels"), ("image_2", "images")):
            shutil.copytree(folder / kind, root / name / scene)
    camera = read_calibration(folder / "calib.txt")["image_2"]
    matrices = {name: np.asarray(value).tolist() for name, value in camera._asdict().items()}
    (root / "calibration.json").write_text(json.dumps({"front": matrices}))
    (root / "dataset.yaml").write_text(DESCRIPTION)
    return root


def test_the_example_of_the_guide_trains_and_evaluates(own_folder, tmp_path):
    assert len(DESCRIPTION.splitlines()) <= 10
    assert re.findall(r"^xd3d (\S+)", GUIDE, flags=re.MULTILINE) == ["prepare", "extract-features", "train", "evaluate"]
    mine, workspace = tmp_path / "mine.yaml", Workspace(home=tmp_path / "work")
    mine.write_text(CONFIG)
    done = jobs.prepare("folder", own_folder, version=None, cameras=None, workspace=workspace)
    assert (done.exit_code, done.result["frames"], done.result["images"]) == (0, 4, 4)
    assert done.text.endswith("Next: xd3d extract-features --dataset folder")
    done = jobs.extract_features("folder", str(mine), TINY, None, retry_failed=False, workspace=workspace)
    assert done.exit_code == 0
    options = [word for change in TINY for word in ("--set", change)]
    assert done.text.endswith(shlex.join(["xd3d", "train", "--cached", "--config", str(mine), *options]))
    jobs.train(str(mine), TINY, cached=True, run=None, workspace=workspace)
    score = jobs.evaluate(None, split=None, domain="target", absent=None, workspace=workspace).result
    assert list(score["iou"]) == ["road", "sidewalk", "vehicle", "building", "nature"]
    assert score["points"] > 100
    assert score["miou"]["xm"] is not None
    north = jobs.evaluate(None, split="train", domain="north", absent=None, workspace=workspace).result
    assert north["protocol"]["domain"] == "north"


def test_data_without_images_are_trained_on_next(own_folder, tmp_path):
    kept = [line for line in DESCRIPTION.splitlines() if line.split(":")[0] not in ("images", "calibration")]
    (own_folder / "dataset.yaml").write_text("\n".join(kept))
    done = jobs.prepare("folder", own_folder, workspace=Workspace(home=tmp_path / "work"))
    assert done.text.endswith("Next: xd3d train --set fusion.variant=3d-only")


@pytest.fixture
def drive(own_folder) -> Path:
    """The same files without labels and classes."""
    shutil.rmtree(own_folder / "labels")
    kept = [line for line in DESCRIPTION.splitlines() if line.split(":")[0] in ("sweeps", "images", "calibration")]
    (own_folder / "dataset.yaml").write_text("\n".join(kept))
    return own_folder


def test_a_drive_without_labels_is_adapted_to_as_the_guide_says(drive, tiny_nuscenes_root, tmp_path, xd3d):
    (config, commands), *_ = re.findall(r"```yaml\n(.*?)```\s+```bash\n(.*?)```", ADAPTATION, flags=re.DOTALL)
    (tmp_path / "drive.yaml").write_text(config)
    changes = ("extract.model=tiny-street", "extract.image_sizes={folder: [48,64]}", *TINY)
    small = [f"--set={change}" for change in changes]
    roots = {"NUSCENES": str(tiny_nuscenes_root), "DRIVE": str(drive)}
    for command in commands.splitlines():
        words = [roots.get(word, word) for word in command.split()[1:]]
        done = xd3d(*words, *(small if "--config" in words else []))
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    work = tmp_path / "xd3d-work"
    (run,) = work.glob("runs/*")
    record = json.loads((run / "run.json").read_text())
    assert record["classes"] == list(get_merge("nuscenes-6").classes)
    assert (record["target"]["dataset"], record["target"]["frames"], record["validation"]) == ("folder", 4, None)
    assert len([*work.glob("labels/*/mine/fused/**/*.label")]) == 4
    refused = xd3d("evaluate")
    assert refused.returncode == 1
    assert "4 frames of 'target' have no labels" in refused.stderr
    assert "xd3d predict --dataset folder" in refused.stderr

    assert xd3d("pseudo-label").returncode == 0
    free = (f"train.init={run.name}", "train.source_free=true", "train.lam_pl=1")
    for changed in (free, (*free, "train.teacher=ema")):
        done = xd3d("train", "--cached", "--config", "drive.yaml", *small, *(f"--set={change}" for change in changed))
        assert done.returncode == 0, done.stderr
    both = ("data.source={dataset: folder, domain: all}", "train.lam_trg=0.1")
    done = xd3d("pretrain", "--cached", "--config", "drive.yaml", *small, *(f"--set={change}" for change in both))
    assert done.returncode == 0, done.stderr
    refused = xd3d("train", "--cached", "--config", "drive.yaml", *small, *(f"--set={change}" for change in both))
    assert refused.returncode == 1
    assert "have no labels" in refused.stderr


def test_an_example_of_a_calibration_is_one_that_is_read(tmp_path):
    from xd3d.stages.datasets.folder_calibration import read_folder_calibration

    (text,) = re.findall(r"```json\n(.*?)```", GUIDE, flags=re.DOTALL)
    (tmp_path / "calibration.json").write_text(text)
    assert (
        read_folder_calibration(tmp_path / "calibration.json")["front"].intrinsics[0, 0]
        == yaml.safe_load(text)["front"]["intrinsics"][0][0]
    )


def test_incomplete_frames_are_left_out_on_request_and_told_of_by_later_commands(own_folder, tmp_path, xd3d):
    (own_folder / "scans/north-1/000000.bin").unlink()
    refused = xd3d("prepare", "--dataset", "folder", "--root", str(own_folder))
    assert refused.returncode == 1
    assert "--allow-missing" in refused.stdout + refused.stderr
    assert "zip" not in refused.stdout + refused.stderr
    taken = xd3d("prepare", "--dataset", "folder", "--root", str(own_folder), "--allow-missing", "--json")
    assert taken.returncode == 0
    assert [each["frame"] for each in json.loads(taken.stdout.splitlines()[-1])["left_out"]] == ["north-1/000000"]
    later = xd3d("extract-features", "--dataset", "folder", "--dry-run", *(f"--set={value}" for value in TINY[:3]))
    assert "1 incomplete frames" in later.stderr
