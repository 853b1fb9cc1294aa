"""Metrics: the file is read back equal and records how they were counted; the table."""

import json
from dataclasses import replace

import numpy as np
import pytest
from xd3d.errors import DataError, MissingDataError, RunError
from xd3d.stages.evaluate.metrics import Metrics, ScoreProtocol, score_table

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
        fusion="product",
    )


@pytest.fixture
def metrics(protocol):
    confusion = {"2d": COUNTS, "3d": COUNTS * 2, "xm": COUNTS, "fused": COUNTS}
    parts = {"weather": {"snow": confusion}}
    return Metrics(classes=NAMES, frames=3, absent="exclude", confusion=confusion, protocol=protocol, parts=parts)


#: A file as it was written before predictions were fused by a rule.
OLD = """
{"miou": {"2d": 0.75, "3d": 0.5, "xm": 0.75}, "iou": {"vehicle": {"2d": 0.75, "3d": 0.5, "xm": 0.75}}, "points": 4,
 "frames": 1, "classes": ["vehicle"], "absent": "exclude", "absent_classes": {"2d": [], "3d": [], "xm": []},
 "confusion": {"3d": [[2, 2]], "2d": [[3, 1]], "xm": [[3, 1]]},
 "parts": {"distance": {"0-20 m": {"miou": {"2d": 0.75, "3d": 0.5, "xm": 0.75}, "points": 4,
           "confusion": {"3d": [[2, 2]], "2d": [[3, 1]], "xm": [[3, 1]]}}}},
 "protocol": {"dataset": "nuscenes", "index": "a", "cameras": ["CAM_FRONT"], "domain": "singapore", "split": "test",
              "merge": "nuscenes-6", "checkpoint": "runs/one", "step": 400, "seed": 1, "features": "b",
              "head": "distil", "split_rule": "official", "code": "0.1.0+12345678"}}
"""


def test_a_card_from_before_there_was_a_fused_reading_opens_and_leaves_it_open(tmp_path):
    (tmp_path / "scores.json").write_text(OLD)
    metrics = Metrics.load(tmp_path / "scores.json")
    assert metrics.miou == {"2d": 0.75, "3d": 0.5, "xm": 0.75, "fused": None}
    assert metrics.part_miou["distance"]["0-20 m"] == metrics.iou["vehicle"] == metrics.miou
    assert metrics.protocol.fusion == "sum"
    assert metrics.protocol.code == "0.1.0+12345678"
    assert score_table(metrics).splitlines()[1].split() == ["vehicle", "4", "75.00", "50.00", "75.00", "-"]
    assert Metrics.from_json(metrics.to_json()).to_json() == metrics.to_json()


def test_a_card_comes_back_equal(metrics, tmp_path):
    metrics.save(tmp_path / "scores.json")
    found = Metrics.load(tmp_path / "scores.json")
    assert found.to_json() == metrics.to_json()
    assert found.protocol == metrics.protocol
    older = {key: value for key, value in metrics.to_json().items() if key != "parts"}
    assert Metrics.from_json(older).parts == {}


def test_the_file_has_the_keys_that_scripts_rely_on(metrics, tmp_path):
    metrics.save(tmp_path / "scores.json")
    values = json.loads((tmp_path / "scores.json").read_text())
    assert values["miou"].keys() == {"2d", "3d", "xm", "fused"}
    assert set(values["iou"]) == set(NAMES)
    assert values["iou"]["vehicle"]["xm"] == pytest.approx(80 / 110)
    assert values["iou"]["terrain"] == {"2d": None, "3d": None, "xm": None, "fused": None}
    assert values["points"] == 2 * 1100
    assert values["absent_classes"]["xm"] == ["terrain"]
    for key in ("split", "merge", "checkpoint", "seed", "features", "code", "split_rule", "fusion"):
        assert values["protocol"][key]


def test_labels_where_no_image_shows_a_point_leave_2d_open(metrics):
    seen_by_none = replace(metrics, confusion={**metrics.confusion, "2d": np.zeros_like(COUNTS)})
    assert seen_by_none.miou == {**metrics.miou, "2d": None}


def test_a_card_without_protocol_is_not_stored(metrics, tmp_path):
    bare = Metrics(classes=NAMES, frames=3, absent="exclude", confusion=metrics.confusion)
    with pytest.raises(RunError, match="no protocol"):
        bare.save(tmp_path / "scores.json")
    assert not (tmp_path / "scores.json").exists()


def test_a_missing_card_says_how_to_make_it(tmp_path):
    with pytest.raises(MissingDataError, match="xd3d evaluate"):
        Metrics.load(tmp_path / "scores.json")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"protocol": null, "classes": [1]}'])
def test_a_file_that_is_no_card_is_refused(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(DataError, match=r"scores\.json.*xd3d evaluate"):
        Metrics.load(tmp_path / "scores.json")


def test_matrices_of_another_size_are_refused(metrics):
    with pytest.raises(DataError, match=r"3 classes.*\(3, 4\)"):
        Metrics(classes=NAMES, frames=1, absent="exclude", confusion={"3d": COUNTS[:, :3]})


def test_the_table_shows_percent_and_names_absent_classes(metrics):
    lines = score_table(metrics).splitlines()
    assert lines[1].split() == ["vehicle", "200", "72.73", "72.73", "72.73", "72.73"]
    assert lines[3].split() == ["terrain", "0", "-", "-", "-", "-"]
    assert lines[4].split()[0] == "mean"
    assert lines[5].split()[0] == "snow"
    assert lines[6] == "neither labelled nor predicted, left out of the mean: terrain"
    assert len({len(line) for line in lines[:5]}) == 1


def test_the_table_of_lidar_alone_leaves_2d_open(protocol):
    metrics = Metrics(classes=NAMES, frames=3, absent="zero", confusion={"3d": COUNTS}, protocol=protocol)
    assert score_table(metrics).splitlines()[4].split()[2] == "-"
    assert "counted as 0" in score_table(metrics)
