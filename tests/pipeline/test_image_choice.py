"""Which images of a cache the options choose."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image
from xd3d.errors import DataError, MissingDataError
from xd3d.pipeline import caches
from xd3d.pipeline.caches import ImageChoice
from xd3d.pipeline.frame_choice import FrameChoice
from xd3d.pipeline.options import comma_separated
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.folder import build_index


@pytest.fixture
def keys(tmp_path):
    """The keys that a file of this content chooses."""

    def read(content):
        (tmp_path / "keys.txt").write_bytes(content)
        return ImageChoice(images=tmp_path / "keys.txt").keys(Workspace(home=tmp_path), "folder")

    return read


def test_a_file_has_a_key_on_each_line_as_any_editor_writes_it(keys):
    assert keys(b"front/a b/1\nfront/c/2\n") == ["front/a b/1", "front/c/2"]
    assert keys("\ufefffront/ä/1\r\n\r\n  front/c/2".encode()) == ["front/ä/1", "front/c/2"]
    assert keys(b"") == []


def test_a_missing_file_and_one_that_is_no_text_are_named(keys, tmp_path):
    with pytest.raises(MissingDataError, match=r"none\.txt"):
        ImageChoice(images=tmp_path / "none.txt").keys(Workspace(home=tmp_path), "folder")
    with pytest.raises(DataError, match=r"keys\.txt"):
        keys(b"\xff\xfe\x00")


def test_an_empty_option_does_not_choose_everything():
    """It may be a shell variable that is not set."""
    assert comma_separated(None) is None
    assert comma_separated("up1, up2") == ["up1", "up2"]
    assert not ImageChoice(scenes=comma_separated("")).whole
    assert not ImageChoice(split="").whole


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_scenes_match_in_either_unicode_form(tmp_path, monkeypatch, form):
    stored = unicodedata.normalize(form, "süd")
    for scene in ("ost", stored):
        (tmp_path / scene).mkdir()
        np.save(tmp_path / scene / "1.npy", np.ones((3, 3)))
        Image.new("RGB", (8, 8)).save(tmp_path / scene / "1.png")
    (tmp_path / "dataset.yaml").write_text(
        "{sweeps: '{scene}/{frame}.npy', images: {front: '{scene}/{frame}.png'}, calibration: calib.json}"
    )
    front = {"intrinsics": [[8, 0, 4], [0, 8, 4], [0, 0, 1]], "camera_from_lidar": np.eye(4).tolist()}
    (tmp_path / "calib.json").write_text(json.dumps({"front": front}))
    index = build_index(tmp_path)
    monkeypatch.setattr(caches, "open_index", lambda *_: index)
    for typed in (unicodedata.normalize(other, "süd") for other in ("NFC", "NFD")):
        assert ImageChoice(scenes=[typed]).keys(Workspace(home=tmp_path), "folder") == [f"front/{stored}/1"]
        rows = FrameChoice(dataset="folder", scenes=[typed]).rows(index)
        assert index.frames.scene[rows].tolist() == [stored]
