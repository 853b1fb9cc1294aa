"""Pseudo labels on disk: what is written, that a stop changes nothing, and that damage is found."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xd3d.errors import DataError, MissingDataError, RunError
from xd3d.locks import FileLock
from xd3d.stages.adapt.pseudo_labels import PART, make_pseudo_labels
from xd3d.stages.evaluate.scores import FramePrediction
from xd3d.stages.train.pseudo_label_choice import LabelRule
from xd3d.stages.train.pseudo_labels import PseudoLabels

CLASSES = ("road", "car", "tree")
FRAMES = 2 * PART + 5
IDENTITY = {"run": "one", "target": {"index": "abc", "frames": FRAMES}}

# Runs in a process of its own and kills itself, hard, when the given file is about to appear.
KILLED = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
real = Path.replace
def deadly(path, target):
    if Path(target).name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, target)
Path.replace = deadly
tests.make(Path(sys.argv[2]))
"""


def predictions(first, *, heads=2):
    """Frames of 0 to 6 points, drawn from their number alone."""
    for number in range(first, FRAMES):
        rng = np.random.default_rng(number)
        points = number % 7
        drawn = [rng.dirichlet(np.ones(3), points).astype(np.float32) for _ in range(2)]
        yield FramePrediction(
            labels=np.full(points, -100),
            probabilities_2d=drawn[0] if heads == 2 else None,
            probabilities_3d=drawn[1],
        )


def make(folder, predict=predictions, **options):
    return make_pseudo_labels(
        folder,
        **{
            **{"identity": IDENTITY, "frames": FRAMES, "classes": CLASSES, "predict": predict, "rule": LabelRule()},
            **options,
        },
    )


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_all(folder):
    PseudoLabels.open(folder).verify()


def must_not_predict(first):
    raise AssertionError("everything is there already")


def test_every_head_learns_the_fused_prediction_where_there_is_one_and_the_2d_head_where_it_sees(tmp_path):
    def predict(first):
        for number, frame in enumerate(predictions(first), start=first):
            shown = np.random.default_rng([7, number]).random(len(frame.labels)) < 0.5
            fused = np.random.default_rng([9, number]).dirichlet(np.full(3, 0.01), len(frame.labels))
            yield replace(
                frame,
                probabilities_2d=np.where(shown[:, None], frame.probabilities_2d, 0),
                probabilities_fused=fused,
            )

    made = make(tmp_path / "pl", predict)
    kept = 0
    for number, frame in enumerate(predict(0)):
        labels, expected = made.read(number, len(frame.labels)), frame.probabilities_fused.argmax(1)
        shown = frame.probabilities_2d.any(1)
        sure = labels != -100
        kept += sure.sum()
        assert not sure[~shown, 0].any()
        for column in range(2):
            np.testing.assert_array_equal(labels[sure[:, column], column], expected[sure[:, column]])
    assert kept > 500


def test_each_head_keeps_its_own_labels_by_the_rule(tmp_path):
    made = make(tmp_path / "pl")
    probabilities = [(frame.probabilities_2d, frame.probabilities_3d) for frame in predictions(0)]
    for column in range(2):
        drawn = np.concatenate([each[column] for each in probabilities])
        labels, confidences = drawn.argmax(1), np.round(drawn.max(1).astype(float) * 65535) / 65535
        for number in range(3):
            mine = labels == number
            least = min(np.sort(confidences[mine])[(mine.sum() - 1) // 2], 0.9)
            labels[mine & (confidences < least)] = -100
        found = [made.read(frame, frame % 7)[:, column] for frame in range(FRAMES)]
        np.testing.assert_array_equal(np.concatenate(found), labels)
        counts = made.facts["classes"][("2d", "3d")[column]]
        assert [counts[name]["kept"] for name in CLASSES] == [int((labels == number).sum()) for number in range(3)]
    assert sorted(content(tmp_path / "pl")) == ["frames.npy", "labels.npy", "pseudo_labels.json"]
    assert np.load(tmp_path / "pl/labels.npy").shape == (made.points, 2)


def test_what_is_there_is_not_predicted_again(tmp_path):
    make(tmp_path / "pl")
    before = content(tmp_path / "pl")
    make(tmp_path / "pl", must_not_predict)
    assert content(tmp_path / "pl") == before


@pytest.mark.parametrize(
    "at",
    [
        "000001.npz",
        pytest.param("labels.npy", marks=pytest.mark.slow),
        pytest.param("frames.npy", marks=pytest.mark.slow),
        "pseudo_labels.json",
    ],
)
def test_kill_9_and_the_same_command_give_the_bytes_of_an_unbroken_one(tmp_path, at):
    make(tmp_path / "unbroken")
    killed = subprocess.run([sys.executable, "-c", KILLED, __file__, str(tmp_path / "killed"), at], check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(MissingDataError, match="xd3d pseudo-label"):
        PseudoLabels.open(tmp_path / "killed")
    asked = []

    def predict(first):
        asked.append(first)
        return predictions(first)

    make(tmp_path / "killed", predict)
    assert content(tmp_path / "killed") == content(tmp_path / "unbroken")
    assert asked == ([PART] if at == "000001.npz" else [])


@pytest.mark.parametrize("place", ["data", "compression method", "encryption flag"])
def test_a_damaged_part_is_predicted_again(tmp_path, place):
    def stopped(first):
        for number, frame in enumerate(predictions(first)):
            if number == 2 * PART:
                raise OSError("the disk is full")
            yield frame

    with pytest.raises(OSError, match="full"):
        make(tmp_path / "pl", stopped)
    part = tmp_path / "pl/predicted/000001.npz"
    directory = part.read_bytes().rindex(b"PK\x01\x02")
    flip(part, {"data": directory // 2, "compression method": directory + 10, "encryption flag": directory + 8}[place])
    make(tmp_path / "pl")
    make(tmp_path / "unbroken")
    assert content(tmp_path / "pl") == content(tmp_path / "unbroken")


def test_two_at_once_are_one_too_many_and_sound_labels_need_no_second(tmp_path):
    (tmp_path / "pl").mkdir()
    other = FileLock(tmp_path / "pl" / "lock")
    with pytest.raises(RunError, match="Another process makes pseudo labels in"):
        make(tmp_path / "pl")
    other.release(remove=True)
    make(tmp_path / "pl")
    other = FileLock(tmp_path / "pl" / "lock")
    assert make(tmp_path / "pl").frames == FRAMES
    other.release()


def flip(path: Path, place: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize("name", ["labels.npy", "frames.npy", "pseudo_labels.json"])
@pytest.mark.parametrize("cut", [False, True])
def test_damage_is_found_and_the_command_mends_it(tmp_path, name, cut):
    make(tmp_path / "pl")
    before = content(tmp_path / "pl")
    path = tmp_path / "pl" / name
    if cut:
        path.write_bytes(path.read_bytes()[:-3])
    else:
        flip(path, 40 if name == "pseudo_labels.json" else path.stat().st_size - 20)
    with pytest.raises(DataError, match="xd3d pseudo-label"):
        read_all(tmp_path / "pl")
    make(tmp_path / "pl")
    assert content(tmp_path / "pl") == before


def test_a_table_of_another_type_is_no_table(tmp_path):
    make(tmp_path / "pl")
    path = tmp_path / "pl" / "frames.npy"
    path.write_bytes(path.read_bytes().replace(b"'<i8'", b"'<a8'"))
    with pytest.raises(DataError, match=r"frames\.npy"):
        read_all(tmp_path / "pl")


def test_labels_of_other_frames_or_heads_are_refused_by_name(tmp_path):
    made = make(tmp_path / "pl", lambda first: predictions(first, heads=1))
    made.require(IDENTITY["target"], heads=("3d",), rule=LabelRule())
    assert (made.read(6, 6)[:, 0] == -100).all()
    with pytest.raises(RunError, match=r"heads: expected 2d, 3d.*no 2d"):
        made.require(IDENTITY["target"], heads=("2d", "3d"), rule=LabelRule())
    with pytest.raises(RunError, match=r'target\.index:.*"other",.*"abc"'):
        made.require({"index": "other", "frames": FRAMES}, heads=("3d",), rule=LabelRule())
    with pytest.raises(DataError, match=r"for 6 points.*has 9"):
        made.read(6, 9)


def test_a_network_that_has_diverged_is_named_not_learned_from(tmp_path):
    def diverged(first):
        for frame in predictions(first):
            frame.probabilities_3d[:1] = np.nan
            yield frame

    with pytest.raises(DataError, match=r"3d.*frame 1"):
        make(tmp_path / "pl", diverged)
