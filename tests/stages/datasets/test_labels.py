"""Label merges and class weights, against the devkit's own mapper and the formula written out."""

import math

import numpy as np
import pytest
from xd3d.errors import ConfigError, DataError
from xd3d.stages.datasets.catalogue import NUSCENES_32
from xd3d.stages.datasets.labels import IGNORE, class_weights, get_merge

SIX = {
    "vehicle": {"bicycle", "bus", "car", "construction_vehicle", "motorcycle", "trailer", "truck"},
    "driveable_surface": {"driveable_surface"},
    "sidewalk": {"sidewalk"},
    "terrain": {"terrain"},
    "manmade": {"manmade"},
    "vegetation": {"vegetation"},
}


class Categories:
    """All that the devkit's mapper asks of a data set."""

    def __init__(self):
        self.lidarseg_name2idx_mapping = {name: number for number, name in enumerate(NUSCENES_32)}


def test_six_classes_equal_the_devkits_sixteen_merged():
    from nuscenes.eval.lidarseg.utils import LidarsegClassMapper

    mapper = LidarsegClassMapper(Categories())
    coarse_name = {number: name for name, number in mapper.coarse_name_2_coarse_idx_mapping.items()}
    merge = get_merge("nuscenes-6")
    assert merge.classes == tuple(SIX)
    for raw, coarse in mapper.fine_idx_2_coarse_idx_mapping.items():
        expected = [n for n, members in enumerate(SIX.values()) if coarse_name[coarse] in members] or [IGNORE]
        assert merge.apply(np.array([raw], np.uint8)).tolist() == expected, NUSCENES_32[raw]


def test_raw_names_equal_those_of_the_real_category_table(real_nuscenes):
    import json

    rows = json.loads((real_nuscenes / "v1.0-mini" / "category.json").read_text())
    assert {row["index"]: row["name"] for row in rows} == dict(enumerate(NUSCENES_32))


def test_a_raw_label_out_of_range_is_refused_with_its_value():
    with pytest.raises(DataError, match=r"Label 32 .* 0 to 31"):
        get_merge("nuscenes-6").apply(np.array([3, 32], np.uint8))
    with pytest.raises(DataError, match="Label -1 "):
        get_merge("nuscenes-6").apply(np.array([3, -1], np.int64))


def test_merging_no_point_gives_no_label():
    assert get_merge("nuscenes-6").apply(np.zeros(0, np.uint8)).shape == (0,)


def test_an_unknown_merge_names_the_nearest():
    with pytest.raises(ConfigError, match="'nuscenes-6'"):
        get_merge("nuscene6")


def test_class_weights_follow_the_published_formula():
    counts = [1000, 10, 100]
    raw = [math.log(5 * 1110 / n) for n in counts]
    np.testing.assert_allclose(class_weights(np.array(counts)), [w / min(raw) for w in raw])


def test_a_class_without_points_gets_a_finite_weight():
    assert class_weights(np.array([10, 0, 1000]))[1] == 1.0


def test_class_weights_of_nothing_are_refused():
    with pytest.raises(DataError, match="no point of the selection"):
        class_weights(np.zeros(6, np.int64))
