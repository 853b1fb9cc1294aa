import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from xd3d.errors import ConfigError, DiskSpaceError, RunError
from xd3d.locks import FileLock
from xd3d.stages.datasets.nuscenes import build_index, check_files
from xd3d.stages.datasets.splits import domain_frames
from xd3d.stages.synthesize import synthesize as module
from xd3d.stages.synthesize.synthesize import root_facts, synthesize

CITY = {"image_size": (64, 36), "plan": "city"}
SMALL = {"frames": 6, "seed": 1, **CITY}


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Six frames, written by one process."""
    return synthesize(tmp_path_factory.mktemp("small") / "root", **SMALL, workers=1)


@pytest.fixture
def nothing_is_rendered(monkeypatch):
    def fail(job):
        pytest.fail(f"{job.plan.name} was driven")

    monkeypatch.setattr(module, "write_scene", fail)


def test_two_workers_write_the_same_bytes_as_one(small, tmp_path):
    assert digests(synthesize(tmp_path / "root", **SMALL, workers=2)) == digests(small)


def test_the_index_reads_it_and_every_file_is_whole(city):
    index = build_index(city.root, cameras="all")
    assert index.cameras == ("CAM_FRONT", "CAM_BACK_LEFT")
    assert len(index.frames.key) == 12
    assert len(index.images.key) == 24
    assert check_files(index) == []


@pytest.mark.parametrize(
    ("domain", "splits"),
    [
        ("usa", ("train", "test")),
        ("singapore", ("train", "val", "test")),
        ("day", ("train", "test")),
        ("night", ("train", "val", "test")),
    ],
)
def test_both_shifts_have_frames_for_every_use(city, domain, splits):
    index = build_index(city.root)
    for split in splits:
        assert len(domain_frames(index, domain, split)) > 0


def test_only_the_chosen_cameras_exist(small):
    sensors = json.loads((small / "v1.0-trainval" / "sensor.json").read_text())
    assert {row["channel"] for row in sensors} == {"LIDAR_TOP", "CAM_FRONT"}
    assert {path.name for path in (small / "samples").iterdir()} == {"LIDAR_TOP", "CAM_FRONT"}


def test_a_finished_root_is_left_as_it_is(small, nothing_is_rendered):
    before = digests(small)
    assert synthesize(small, **SMALL) == small
    assert digests(small) == before


def test_another_seed_gives_another_city(small, tmp_path, monkeypatch):
    # One scene is enough to tell: the rest is not driven.
    class EnoughError(Exception):
        pass

    def one_scene(job, write=module.write_scene):
        write(job)
        raise EnoughError

    monkeypatch.setattr(module, "write_scene", one_scene)
    with pytest.raises(EnoughError):
        synthesize(tmp_path / "root", **SMALL | {"seed": 2}, workers=1)
    assert not set(digests(tmp_path / "root" / "samples").values()) & set(digests(small / "samples").values())


def test_a_call_stopped_among_scenes_and_then_among_tables_is_taken_up_again(small, tmp_path, monkeypatch):
    root, driven = tmp_path / "root", []

    def stop_after_three(job, write=module.write_scene):
        if len(driven) == 3:
            job.out.joinpath("samples/LIDAR_TOP/half.pcd.bin.1.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        driven.append(job.plan.name)
        return write(job)

    def go_on(job, write=module.write_scene):
        driven.append(job.plan.name)
        return write(job)

    def stop_at_log(path, value, write=module.write_json):
        if path.name == "log.json":
            raise KeyboardInterrupt
        write(path, value)

    for change in ({"write_scene": stop_after_three}, {"write_scene": go_on, "write_json": stop_at_log}):
        with monkeypatch.context() as patch:
            for name, value in change.items():
                patch.setattr(module, name, value)
            with pytest.raises(KeyboardInterrupt):
                synthesize(root, **SMALL, workers=1)
        assert not list(root.glob("v1.0*"))
    assert len(driven) == len(set(driven)) == 6
    synthesize(root, **SMALL, workers=1)
    assert digests(root) == digests(small)


@pytest.mark.slow
def test_a_killed_call_leaves_no_process_behind_and_is_taken_up_again(small, tmp_path):
    root = tmp_path / "root"
    code = (
        "import sys; from pathlib import Path; from xd3d.stages.synthesize.synthesize import synthesize; "
        f"synthesize(Path(sys.argv[1]), frames={SMALL['frames']}, seed={SMALL['seed']}, "
        f"image_size={SMALL['image_size']}, workers=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], start_new_session=True)
    while not list(root.glob(".parts/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(root.glob("v1.0*"))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers outlive the call that started them")
    synthesize(root, **SMALL, workers=1)
    assert digests(root) == digests(small)


def test_two_processes_do_not_write_one_root(tmp_path, nothing_is_rendered):
    (tmp_path / "root" / ".parts").mkdir(parents=True)
    (tmp_path / "root" / "synthetic.json").write_text(json.dumps(root_facts(6, seed=1, cameras="CAM_FRONT", **CITY)))
    other = FileLock(tmp_path / "root" / ".parts" / "lock")
    with pytest.raises(RunError, match=r"Another process .*\.parts"):
        synthesize(tmp_path / "root", **SMALL)
    other.release()


@pytest.mark.parametrize("content", ["[]", "[1]", "3", '"text"', "{"])
def test_a_folder_with_another_file_of_that_name_is_refused(tmp_path, content):
    (tmp_path / "synthetic.json").write_text(content)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match=r"not a synthetic city|another synthetic city"):
        synthesize(tmp_path, **SMALL)


def test_a_foreign_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a synthetic city"):
        synthesize(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        synthesize(tmp_path / "file", **SMALL)


def test_another_synthesis_is_refused_with_what_differs(small, nothing_is_rendered):
    with pytest.raises(ConfigError, match=r"frames: expected 7, found 6; seed: expected 3, found 1"):
        synthesize(small, **SMALL | {"frames": 7, "seed": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 2}, "between 6 and"),
        ({"seed": -1}, "seed is -1"),
        ({"cameras": ("CAM_FRUNT",)}, "did you mean 'CAM_FRONT'"),
        ({"cameras": ()}, "No camera is chosen"),
    ],
)
def test_faulty_arguments_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        synthesize(tmp_path / "root", **SMALL | change)
    assert not (tmp_path / "root").exists()


def test_a_full_disk_is_refused_with_both_numbers(tmp_path, monkeypatch, nothing_is_rendered):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskSpaceError, match=r"about 0\.\d+.*has 0\.01 GB"):
        synthesize(tmp_path / "root", **SMALL)


def test_sweeps_are_five_floats_and_labels_one_byte_a_point(small):
    for sweep in (small / "samples" / "LIDAR_TOP").iterdir():
        points = np.fromfile(sweep, np.float32).reshape(-1, 5)
        assert len(points) > 5000
        assert np.isfinite(points).all()
        assert points[:, 3].min() >= 0
        assert points[:, 3].max() <= 255
        assert set(np.unique(points[:, 4])) <= set(range(64))
