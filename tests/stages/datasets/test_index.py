"""The index on disk: it comes back equal, and damage of any kind is named."""

import dataclasses
import json
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from xd3d.errors import DataError, MissingDataError
from xd3d.files import read_json
from xd3d.stages.datasets.index import FrameIndex, FrameTable, ImageTable
from xd3d.stages.datasets.nuscenes import build_index


@pytest.fixture(scope="module")
def index(tiny_nuscenes_root):
    return build_index(tiny_nuscenes_root, cameras="all")


def test_an_index_comes_back_equal(index, tmp_path):
    index.save(tmp_path)
    found = FrameIndex.load(tmp_path)
    assert (found.dataset, found.version, found.root, found.cameras) == (
        index.dataset,
        index.version,
        index.root,
        index.cameras,
    )
    for table, kind in (("frames", FrameTable), ("images", ImageTable)):
        for field in dataclasses.fields(kind):
            ours, theirs = (getattr(getattr(i, table), field.name) for i in (index, found))
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


def test_text_beyond_ascii_comes_back_equal(index, tmp_path):
    words = np.array(["Straße, 雨"] + [""] * (len(index.frames.key) - 1))
    other = dataclasses.replace(index, frames=dataclasses.replace(index.frames, description=words))
    other.save(tmp_path)
    assert FrameIndex.load(tmp_path).frames.description.tolist() == words.tolist()


def test_the_images_of_a_frame_are_one_of_each_camera(index):
    for row, key in enumerate(index.frames.key):
        images = index.images_of(row)
        assert index.images.camera[images].tolist() == list(index.cameras)
        assert all(str(key) in path for path in index.images.path[images])


def test_the_digest_follows_the_facts_and_not_the_root(index, tmp_path):
    moved = dataclasses.replace(index, root=tmp_path)
    assert moved.digest == index.digest
    calibration = index.images.camera_from_lidar.copy()
    calibration[3, 0, 3] += 1e-12
    images = dataclasses.replace(index.images, camera_from_lidar=calibration)
    assert dataclasses.replace(index, images=images).digest != index.digest


def test_a_folder_without_an_index_says_how_to_make_one(tmp_path):
    with pytest.raises(MissingDataError, match="xd3d prepare"):
        FrameIndex.load(tmp_path)


def columns_of(folder):
    (path,) = folder.glob("columns-*.npz")
    return path


def damage_columns(folder):
    path = columns_of(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_byte(folder):
    path = columns_of(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(bytes(content))


def swap_columns(folder):
    with np.load(columns_of(folder)) as stored:
        columns = dict(stored)
    columns["images.intrinsics"] = columns["images.intrinsics"] * 2
    np.savez(columns_of(folder), **columns)


def lose_column(folder):
    with np.load(columns_of(folder)) as stored:
        columns = dict(stored)
    del columns["images.path"]
    np.savez(columns_of(folder), **columns)


def edit_facts(**changes):
    def damage(folder):
        path = folder / "index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        damage_columns,
        flip_byte,
        swap_columns,
        lose_column,
        edit_facts(format=99),
        edit_facts(version="v2"),
        lambda folder: (folder / "index.json").write_text("{"),
        lambda folder: (folder / "index.json").write_text("[]"),
        edit_facts(digest=None),
        edit_facts(columns=[1]),
        lambda folder: (folder / "index.json").write_text("{}"),
        edit_facts(images=0, columns="index.json"),
    ],
)
def test_a_damaged_index_is_refused_with_the_way_out(index, tmp_path, damage):
    index.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match="'xd3d prepare'"):
        FrameIndex.load(tmp_path)


def test_columns_of_unequal_length_are_refused(index):
    frames = dataclasses.replace(index.frames, sweep=index.frames.sweep[1:])
    with pytest.raises(DataError, match=r"frames\.sweep .* 17 rows.* 18"):
        dataclasses.replace(index, frames=frames)


def test_nothing_is_pickled(index, tmp_path):
    index.save(tmp_path)
    with np.load(columns_of(tmp_path), allow_pickle=False) as stored:
        assert not any(stored[name].dtype.hasobject for name in stored.files)


def others(index, count=3):
    """Indexes of one size that differ in their scenes' words."""
    words = index.frames.description
    return [
        dataclasses.replace(
            index, frames=dataclasses.replace(index.frames, description=np.full(len(words), f"index {number}"))
        )
        for number in range(count)
    ]


WRITER = """
import itertools, pathlib
from xd3d.stages.datasets.index import FrameIndex
indexes = [FrameIndex.load(pathlib.Path(name)) for name in "012"]
print("begun", flush=True)
for each in itertools.cycle(indexes):
    each.save(pathlib.Path("index"))
"""


def test_writers_that_meet_leave_one_whole_index(index, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda each: [each.save(tmp_path) for _ in range(8)], others(index)))
    assert FrameIndex.load(tmp_path).digest in {each.digest for each in others(index)}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_writer_that_is_killed_anywhere_leaves_the_old_or_the_new_index(index, tmp_path):
    known = {each.digest for each in others(index)}
    for number, each in enumerate(others(index)):
        each.save(tmp_path / str(number))
    others(index)[0].save(tmp_path / "index")
    for number in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER], cwd=tmp_path, stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            time.sleep(0.011 * number)
            child.kill()
        assert FrameIndex.load(tmp_path / "index").digest in known
    others(index)[1].save(tmp_path / "index")
    assert len(list((tmp_path / "index").iterdir())) == 2


def test_a_full_disk_is_named_and_leaves_the_old_index(index, tmp_path):
    old, new, _ = others(index)
    old.save(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"columns-.*\.npz"):
            new.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert FrameIndex.load(tmp_path).digest == old.digest
    assert len(list(tmp_path.iterdir())) == 2


def test_an_index_that_is_replaced_while_it_is_opened_comes_whole(index, tmp_path, monkeypatch):
    index.save(tmp_path)
    newer = dataclasses.replace(index, version="newer")

    def read_then_replace(path):
        facts = read_json(path)
        newer.save(tmp_path)
        return facts

    monkeypatch.setattr("xd3d.stages.datasets.index.read_json", read_then_replace)
    assert FrameIndex.load(tmp_path).version == "newer"
