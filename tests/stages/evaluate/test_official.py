"""Predictions of SemanticKITTI in the benchmark's files, and the merge as its evaluator reads it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from xd3d.errors import ConfigError, DataError
from xd3d.stages.datasets.index import FrameIndex, FrameTable, ImageTable
from xd3d.stages.datasets.labels import get_merge
from xd3d.stages.evaluate.official import (
    NO_CLASS,
    finish_export,
    official_ids,
    prediction_path,
    require_official,
    write_prediction,
)


def index_of(dataset, key, labels=""):
    column = {name: np.array([""]) for name in ("scene", "location", "description", "split", "sweep")}
    frames = FrameTable(key=np.array([key]), labels=np.array([labels]), **column)
    return FrameIndex(dataset=dataset, version="", root=Path(), cameras=(), frames=frames, images=ImageTable.of([]))


@pytest.mark.parametrize("merge", ["semantickitti-19", "a2d2-semantickitti-10", "virtualkitti-semantickitti-6"])
def test_written_classes_come_back_through_the_config_beside_them(tmp_path, merge):
    index, chosen = index_of("semantickitti", "08/000003"), get_merge(merge, "semantickitti")
    classes = np.append(np.arange(len(chosen.classes)), NO_CLASS)
    write_prediction(tmp_path, index, 0, classes, official_ids(chosen, "semantickitti"))
    finish_export(tmp_path, index, chosen, every_point=True, images=False)
    found = np.fromfile(tmp_path / "sequences/08/predictions/000003.label", "<u4")
    config = yaml.safe_load((tmp_path / f"{merge}.yaml").read_text())
    assert [config["learning_map"][number] - 1 for number in found.tolist()] == classes.tolist()
    assert [config["learning_map_inv"][number + 1] for number in classes.tolist()] == found.tolist()
    assert [number for number, ignored in config["learning_ignore"].items() if ignored] == [0]
    for raw, number in config["learning_map"].items():
        assert chosen.apply(np.array([raw]))[0] in (number - 1, -100)


def test_merged_classes_and_points_without_a_class_are_named(tmp_path):
    index = index_of("semantickitti", "08/000003")
    official, merged = (get_merge(name, "semantickitti") for name in ("semantickitti-19", "a2d2-semantickitti-10"))
    assert finish_export(tmp_path, index, official, every_point=True, images=False) == []
    faults = finish_export(tmp_path, index, merged, every_point=False, images=False)
    assert "--datacfg a2d2-semantickitti-10.yaml" in faults[0]
    assert "counted as errors" in faults[1]


def test_a_data_set_without_an_official_form_is_refused():
    with pytest.raises(ConfigError, match=r"a2d2.*semantickitti.*xd3d predict --dataset a2d2"):
        require_official("a2d2")


def test_a_keyframe_without_labels_takes_the_name_of_its_prediction_from_the_table(tmp_path):
    table = tmp_path / "v1.0-test" / "sample_data.json"
    table.parent.mkdir()
    rows = [("between", "samples/LIDAR_TOP/a.bin", False), ("token-2", "samples/LIDAR_TOP//a.bin", True)]
    table.write_text(json.dumps([{"token": token, "filename": name, "is_key_frame": key} for token, name, key in rows]))
    index = replace(index_of("nuscenes", "sample"), root=tmp_path, version="v1.0-test")
    with pytest.raises(DataError, match=r"file.*sample_data\.json"):
        prediction_path(index, 0)
    index = replace(index, frames=replace(index.frames, sweep=np.array(["samples/LIDAR_TOP/a.bin"])))
    index = replace(index, frames=replace(index.frames, split=np.array(["test"])))
    assert prediction_path(index, 0).as_posix() == "lidarseg/test/token-2_lidarseg.bin"
