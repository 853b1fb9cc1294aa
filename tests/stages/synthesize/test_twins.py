"""Twins: whole or not there, the same bytes for the same arguments, and sweeps that agree with their pictures."""

from pathlib import Path

import numpy as np
import pytest
from xd3d.errors import ConfigError, RunError
from xd3d.locks import FileLock
from xd3d.stages.datasets import semantickitti
from xd3d.stages.datasets.frames import load_frame
from xd3d.stages.datasets.labels import get_merge
from xd3d.stages.synthesize.twin_lidar import raw_ids
from xd3d.stages.synthesize.twin_scene import Passage
from xd3d.stages.synthesize.twins import TWINS, synthesize_twin

TINY = {"image_size": (124, 38), "azimuth_steps": 90}


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_equal_arguments_give_equal_bytes(tmp_path):
    one = synthesize_twin(tmp_path / "one", dataset="synlidar", frames=3, seed=4, workers=1, **TINY)
    two = synthesize_twin(tmp_path / "two", dataset="synlidar", frames=3, seed=4, workers=1, **TINY)
    other = synthesize_twin(tmp_path / "other", dataset="synlidar", frames=3, seed=5, workers=1, **TINY)
    assert contents(one) == contents(two) != contents(other)
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_with_something_in_it_is_refused_and_untouched(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="not an empty folder"):
        synthesize_twin(tmp_path, dataset="synlidar", frames=3, **TINY)
    assert contents(tmp_path) == {"mine.txt": b"kept"}


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path):
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "empty")
    synthesize_twin(link, dataset="synlidar", frames=3, workers=1, **TINY)
    assert link.is_symlink()
    assert (link / "00" / "velodyne").is_dir()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["empty"]


@pytest.mark.parametrize("out", ["mounted", "."])
def test_a_mount_point_and_the_current_folder_are_refused_before_hours_of_work(tmp_path, monkeypatch, out):
    (tmp_path / "mounted").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("pathlib.Path.is_mount", lambda path: path.name == "mounted")
    monkeypatch.chdir(tmp_path / "here" if out == "." else tmp_path)
    with pytest.raises(ConfigError, match="mount point or the current folder"):
        synthesize_twin(Path(out), dataset="synlidar", frames=3, **TINY)


def test_two_processes_do_not_write_one_root(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Passage, "sweep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            synthesize_twin(tmp_path / "root", dataset="synlidar", frames=3, workers=1, **TINY)
    other = FileLock(tmp_path / "root.partial" / "lock")
    with pytest.raises(RunError, match=r"Another process .*root\.partial"):
        synthesize_twin(tmp_path / "root", dataset="synlidar", frames=3, workers=1, **TINY)
    other.release()
    synthesize_twin(tmp_path / "root", dataset="synlidar", frames=3, workers=1, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_an_unknown_format_and_too_few_frames_say_what_is_possible(tmp_path):
    with pytest.raises(ConfigError, match="'semantickitti'"):
        synthesize_twin(tmp_path / "out", dataset="semantic_kitti")
    with pytest.raises(ConfigError, match="needs 5 to"):
        synthesize_twin(tmp_path / "out", dataset="semantickitti", frames=4)


@pytest.mark.parametrize("dataset", TWINS)
@pytest.mark.parametrize("frames", [7, 31, 120])
def test_every_frame_that_was_asked_for_lies_in_some_scene(dataset, frames):
    scenes = TWINS[dataset].scenes(frames)
    assert sum(scene.frames for scene in scenes) == frames
    assert all(scene.frames for scene in scenes)


def test_points_of_semantickitti_fall_on_pixels_of_their_class(tmp_path, monkeypatch):
    pictures = []
    render = Passage.picture
    monkeypatch.setattr(Passage, "picture", lambda *args: pictures.append(render(*args)) or pictures[-1])
    root = synthesize_twin(
        tmp_path / "root", dataset="semantickitti", frames=5, image_size=(310, 94), azimuth_steps=180, workers=1
    )
    index, merge = semantickitti.build_index(root), get_merge("semantickitti-19", "semantickitti")
    agree = []
    for row in range(4):
        frame, picture = load_frame(index, row, merge), pictures[row]
        columns, rows = np.floor(frame.projection_uv * index.images.size[row]).astype(int).T
        shown = merge.apply(raw_ids("semantickitti")[picture.labels[rows, columns]])
        agree.append(float((shown == frame.labels).mean()))
    assert min(agree) > 0.9


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    out = tmp_path_factory.mktemp("twin") / "root"
    return synthesize_twin(out, dataset="semantickitti", frames=7, image_size=(248, 76), azimuth_steps=180, workers=1)


def test_labels_carry_instances_above_the_semantic_id(kitti):
    labels = np.fromfile(kitti / "dataset/sequences/00/labels/000000.label", "<u4")
    things = (labels & 0xFFFF >= 10) & (labels & 0xFFFF < 40)
    assert things.any()
    assert ((labels >> 16 > 0) == things).all()


def test_text_files_have_the_form_of_the_real_ones(kitti):
    folder = kitti / "dataset/sequences/00"
    lines = (folder / "calib.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["P0", "P1", "P2", "P3", "Tr"]
    assert all(len(line.split()) == 13 and len(line.split()[1].lstrip("-")) == 18 for line in lines)
    frames = len(list((folder / "velodyne").iterdir()))
    assert len((folder / "poses.txt").read_text().splitlines()) == frames
    assert len((folder / "times.txt").read_text().splitlines()) == frames
    assert frames == 2
