"""The score card: its file comes back equal, it says how it was counted, and its table reads."""

import json
from dataclasses import replace

import numpy as np
import pytest
from xd3d.errors import DataError, MissingDataError, RunError
from xd3d.stages.evaluate.card import ScoreCard, score_table
from xd3d.stages.evaluate.protocol import ScoreProtocol

NAMES = ("vehicle", "road", "terrain")
COUNTS = np.array([[80, 20, 0, 0], [10, 980, 0, 10], [0, 0, 0, 0]])


@pytest.fixture
def protocol():
    return ScoreProtocol(
        dataset="nuscenes",
        index="1" * 64,
        cameras=("CAM_FRONT",),
        domain="singapore",
        split="test",
        merge="nuscenes-6",
        checkpoint="best",
        step=300,
        seed=1,
        features="2" * 64,
        head="distil",
    )


@pytest.fixture
def card(protocol):
    confusion = {"2d": COUNTS, "3d": COUNTS * 2, "xm": COUNTS}
    parts = {"weather": {"snow": confusion}}
    return ScoreCard(classes=NAMES, frames=3, absent="exclude", confusion=confusion, protocol=protocol, parts=parts)


def test_a_card_comes_back_equal(card, tmp_path):
    card.save(tmp_path / "scores.json")
    found = ScoreCard.load(tmp_path / "scores.json")
    assert found.to_json() == card.to_json()
    assert found.protocol == card.protocol
    older = {key: value for key, value in card.to_json().items() if key != "parts"}
    assert ScoreCard.from_json(older).parts == {}


def test_the_file_has_the_keys_that_scripts_rely_on(card, tmp_path):
    card.save(tmp_path / "scores.json")
    values = json.loads((tmp_path / "scores.json").read_text())
    assert values["miou"].keys() == {"2d", "3d", "xm"}
    assert set(values["iou"]) == set(NAMES)
    assert values["iou"]["vehicle"]["xm"] == pytest.approx(80 / 110)
    assert values["iou"]["terrain"] == {"2d": None, "3d": None, "xm": None}
    assert values["points"] == 2 * 1100
    assert values["absent_classes"]["xm"] == ["terrain"]
    for key in ("split", "merge", "checkpoint", "seed", "features", "code", "split_rule"):
        assert values["protocol"][key]


def test_labels_where_no_image_shows_a_point_leave_2d_open(card):
    seen_by_none = replace(card, confusion={**card.confusion, "2d": np.zeros_like(COUNTS)})
    assert seen_by_none.miou == {**card.miou, "2d": None}


def test_a_card_without_protocol_is_not_stored(card, tmp_path):
    bare = ScoreCard(classes=NAMES, frames=3, absent="exclude", confusion=card.confusion)
    with pytest.raises(RunError, match="no protocol"):
        bare.save(tmp_path / "scores.json")
    assert not (tmp_path / "scores.json").exists()


def test_a_missing_card_says_how_to_make_it(tmp_path):
    with pytest.raises(MissingDataError, match="xd3d evaluate"):
        ScoreCard.load(tmp_path / "scores.json")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"protocol": null, "classes": [1]}'])
def test_a_file_that_is_no_card_is_refused(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(DataError, match="xd3d evaluate"):
        ScoreCard.load(tmp_path / "scores.json")


def test_matrices_of_another_size_are_refused(card):
    with pytest.raises(DataError, match=r"3 classes needs confusion matrices \(3, 4\)"):
        ScoreCard(classes=NAMES, frames=1, absent="exclude", confusion={"3d": COUNTS[:, :3]})


def test_the_table_shows_percent_and_names_absent_classes(card):
    lines = score_table(card).splitlines()
    assert lines[1].split() == ["vehicle", "200", "72.73", "72.73", "72.73"]
    assert lines[3].split() == ["terrain", "0", "-", "-", "-"]
    assert lines[4].split()[0] == "mean"
    assert lines[5].split()[0] == "snow"
    assert lines[6] == "neither labelled nor predicted, left out of the mean: terrain"
    assert len({len(line) for line in lines[:5]}) == 1


def test_the_table_of_lidar_alone_leaves_2d_open(protocol):
    card = ScoreCard(classes=NAMES, frames=3, absent="zero", confusion={"3d": COUNTS}, protocol=protocol)
    assert score_table(card).splitlines()[4].split()[2] == "-"
    assert "counted as 0" in score_table(card)
