"""What a user reads when something is wrong: the file or setting, what was expected, the remedy, and no traceback."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

SMALL = ("--set", "extract.image_size=[90,160]", "--set", "extract.taps=[up1]", "--set", "extract.agents.count=4")


def first(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


FAULTS = {
    "truncated image": (lambda root: cut(first(root, "samples/CAM_FRONT/*.jpg")), "CAM_FRONT", "truncated"),
    "missing image": (lambda root: first(root, "samples/CAM_FRONT/*.jpg").unlink(), "CAM_FRONT", "missing"),
    "truncated sweep": (lambda root: cut(first(root, "samples/LIDAR_TOP/*.bin")), "LIDAR_TOP", "multiple of 20"),
    "missing sweep": (lambda root: first(root, "samples/LIDAR_TOP/*.bin").unlink(), "LIDAR_TOP", "missing"),
    "labels of another length": (lambda root: cut(first(root, "lidarseg/*/*.bin")), "_lidarseg.bin", "600"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_prepare_lists_a_faulty_file_and_keeps_no_index(xd3d, broken_root, fault):
    damage, name, reason = FAULTS[fault]
    root = broken_root()
    damage(root)
    done = xd3d("prepare", "--root", str(root), "--json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    (listed,) = facts["missing"]
    assert name in listed["file"]
    assert reason in listed["reason"]
    assert facts["index"] is None


def test_all_faulty_files_are_listed_at_once(xd3d, broken_root):
    root = broken_root()
    cut(first(root, "samples/CAM_FRONT/*.jpg"))
    first(root, "samples/LIDAR_TOP/*.bin").unlink()
    done = xd3d("prepare", "--root", str(root))
    assert done.returncode == 1
    assert ("CAM_FRONT" in done.stdout, "LIDAR_TOP" in done.stdout, "same command" in done.stdout) == (True,) * 3


def rename_version(root: Path) -> None:
    (root / "v1.0-trainval").rename(root / "v1.0-test")


@pytest.mark.parametrize(
    ("damage", "options", "words"),
    [
        (lambda root: None, ("--version", "v1.0-mini"), ["v1.0-mini", "v1.0-trainval"]),
        (lambda root: (root / "v1.0-trainval/ego_pose.json").unlink(), (), ["ego_pose"]),
        (lambda root: (root / "v1.0-trainval/lidarseg.json").unlink(), (), ["lidarseg"]),
        (lambda root: shutil.rmtree(root / "v1.0-trainval"), (), ["v1.0-"]),
        (lambda root: None, ("--cameras", "CAM_FRONTT"), ["CAM_FRONT"]),
        (lambda root: None, ("--dataset", "nuscene"), ["nuscenes"]),
    ],
    ids=["wrong version", "missing table", "no lidarseg", "no tables", "unknown camera", "unknown data set"],
)
def test_prepare_says_what_is_wrong_with_a_root(xd3d, broken_root, damage, options, words):
    root = broken_root()
    damage(root)
    done = xd3d("prepare", "--root", str(root), *options)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("xd3d: ")
    assert "Traceback" not in done.stderr
    assert [word for word in words if word not in done.stderr] == []


def test_a_root_may_stand_in_a_config(xd3d, tiny_nuscenes_root):
    root = ("--set", f"data.roots.nuscenes={tiny_nuscenes_root}")
    done = xd3d("prepare", *root, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["frames"] == 18


def test_a_root_that_is_not_there_is_named(xd3d, tmp_path):
    done = xd3d("prepare", "--root", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert str(tmp_path / "nowhere") in done.stderr


@pytest.fixture
def prepared(xd3d, tiny_nuscenes_root):
    assert xd3d("prepare", "--root", str(tiny_nuscenes_root)).returncode == 0


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_model_folder_without_a_part_names_the_part(xd3d, prepared, tmp_path, part):
    import xd3d.stages.extract as extract

    model = tmp_path / "model"
    shutil.copytree(Path(extract.__file__).parent / "models" / "tiny-street", model)
    shutil.rmtree(model / part)
    done = xd3d("extract-features", "--set", f"extract.model={model}")
    assert done.returncode == 1
    assert f"'{part}'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_id_that_cannot_be_reached_is_an_error_that_says_what_to_do(xd3d, prepared):
    done = xd3d("extract-features", "--set", "extract.model=nobody/nothing")
    assert done.returncode == 1
    assert "nobody/nothing" in done.stderr
    assert "folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_said_before_work_begins(xd3d, tiny_nuscenes_root, small_disk):
    home = str(small_disk / "work")
    assert xd3d("prepare", "--root", str(tiny_nuscenes_root), XD3D_HOME=home).returncode == 0
    forecast = xd3d("extract-features", "--dry-run", "--json", XD3D_HOME=home)
    assert forecast.returncode == 1
    assert json.loads(forecast.stdout.splitlines()[-1])["fits"] is False
    done = xd3d("extract-features", XD3D_HOME=home)
    assert done.returncode == 1
    assert "free" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_image_that_breaks_after_prepare_is_recorded_and_the_others_are_done(xd3d, broken_root):
    root = broken_root()
    assert xd3d("prepare", "--root", str(root)).returncode == 0
    cut(first(root, "samples/CAM_FRONT/*.jpg"))
    done = xd3d("extract-features", *SMALL, "--json")
    assert done.returncode == 1
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (facts["done"], facts["failed"]) == (facts["images"] - 1, 1)


def test_a_workspace_that_cannot_be_written_is_named_without_a_traceback(xd3d, twin_of):
    done = xd3d("prepare", "--dataset", "synlidar", "--root", str(twin_of("synlidar")), XD3D_HOME="/dev/null/work")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "/dev/null/work" in done.stderr
    assert "XD3D_HOME" in done.stderr
