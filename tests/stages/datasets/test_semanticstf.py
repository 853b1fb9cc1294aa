"""SemanticSTF and SynLiDAR: weather lists, five-float sweeps, and their ways into SemanticKITTI's classes."""

import numpy as np
import pytest
from xd3d.errors import DataError, MissingDataError
from xd3d.stages.datasets import synlidar
from xd3d.stages.datasets.labels import IGNORE, get_merge
from xd3d.stages.datasets.semanticstf import build_index
from xd3d.stages.datasets.splits import domain_frames


def test_the_classes_are_those_of_the_learning_map_in_its_order():
    merge = get_merge("semantickitti-19", "semanticstf")
    assert merge.apply(np.arange(21)).tolist() == [IGNORE, *range(19), IGNORE]
    assert merge.raw_ids.tolist() == list(range(1, 20))


def test_synlidar_goes_into_the_same_classes_as_pointdr_maps_it():
    merge = get_merge("semantickitti-19", "synlidar")
    pointdr = [0, 3, 3, 4, 1, 2, 4, 8, 10, 9, 11, 5, 5, 5, 5, 6, 7, 12, 255, 14, 15, 16, 18, 17, 255, 13, *[255] * 6]
    assert merge.apply(np.arange(33)).tolist() == [IGNORE, *(IGNORE if n == 255 else n for n in pointdr)]
    assert merge.raw_ids.tolist() == [1, 5, 6, 3, 7, 12, 16, 17, 8, 10, 9, 11, 18, 26, 20, 21, 22, 24, 23]


def test_each_weather_is_a_part_of_the_test_set(root_of):
    index = build_index(root_of("semanticstf"))
    parts = [domain_frames(index, weather, "test") for weather in ("dense_fog", "light_fog", "rain", "snow")]
    assert sorted(np.concatenate(parts).tolist()) == domain_frames(index, "all", "test").tolist()
    assert all(len(part) for part in parts)


@pytest.mark.parametrize(
    ("damage", "error", "expected"),
    [
        (lambda path: path.unlink(), MissingDataError, "list of the weather of each frame"),
        (lambda path: path.write_text(path.read_text().replace("rain", "hail")), DataError, "Line .* dense_fog"),
        (lambda path: path.write_text(path.read_text().split("\n", 1)[1]), DataError, "no weather for 1 of 4 frames"),
    ],
)
def test_a_damaged_list_of_weathers_is_named(copy_of, damage, error, expected):
    root = copy_of("semanticstf")
    damage(root / "val/val.txt")
    with pytest.raises(error, match=expected) as caught:
        build_index(root)
    assert str(root / "val/val.txt") in str(caught.value)


def test_the_list_may_name_files_as_well_as_frames(copy_of):
    root = copy_of("semanticstf")
    path = root / "val/val.txt"
    before = build_index(root).digest
    path.write_text(path.read_text().replace(",", ".bin,"))
    assert build_index(root).digest == before


def test_synlidar_may_lie_under_sequences(copy_of, tmp_path):
    root = copy_of("synlidar")
    (tmp_path / "set").mkdir()
    root.rename(tmp_path / "set" / "sequences")
    assert len(synlidar.build_index(tmp_path / "set").frames.key) == 4
