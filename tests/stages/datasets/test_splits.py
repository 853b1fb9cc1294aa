"""The split rule `xd3d`: published counts on a data set of the real size, and no frame in two splits of a run."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from xd3d.errors import ConfigError, DataError
from xd3d.stages.datasets.catalogue import DOMAINS
from xd3d.stages.datasets.index import FrameIndex, FrameTable, ImageTable
from xd3d.stages.datasets.settings import DomainSettings
from xd3d.stages.datasets.splits import domain_frames, validation_side

#: The published shifts between parts of nuScenes.
#: The domains of real data; those of the benchmark exist in its own root alone.
CITY_DOMAINS = [name for name in DOMAINS["nuscenes"] if not name.startswith("streets")]

SHIFTS = [("usa", "singapore"), ("singapore", "usa"), ("day", "night")]


def make_index(scenes, frames_each=2):
    """An index without images; `scenes` holds (name, location, description, official split)."""
    rows = [scene for scene in scenes for _ in range(frames_each)]
    name, location, description, split = (np.array(column, str) for column in zip(*rows, strict=True))
    key = np.array([f"{n}-{i}" for i, n in enumerate(name)])
    frames = FrameTable(
        key=key, scene=name, location=location, description=description, split=split, sweep=key, labels=key
    )
    nothing = np.zeros(0, str)
    images = ImageTable(
        frame=np.zeros(0, np.int64),
        key=nothing,
        camera=nothing,
        path=nothing,
        size=np.zeros((0, 2), np.int64),
        intrinsics=np.zeros((0, 3, 3)),
        camera_from_lidar=np.zeros((0, 4, 4)),
    )
    return FrameIndex(dataset="nuscenes", version="v", root=Path("/data"), cameras=(), frames=frames, images=images)


@pytest.fixture(scope="module")
def full_size():
    """700 train scenes as published: 390 in Boston, 310 in Singapore, 84 of these at night; and 150 val scenes."""
    scenes = []
    for number in range(700):
        location = "boston-seaport" if number < 390 else "singapore-queenstown"
        description = "Night, rain" if number >= 700 - 84 else "Busy street"
        scenes.append((f"scene-{number:04d}", location, description, "train"))
    for number in range(150):
        location = "boston-seaport" if number < 77 else "singapore-onenorth"
        scenes.append((f"scene-{700 + number:04d}", location, "After NIGHT" if number >= 135 else "Day", "val"))
    return make_index(scenes)


def scenes_of(index, rows):
    return {str(name) for name in index.frames.scene[rows]}


def validation_domain(source: str, target: str) -> str:
    side = validation_side(DomainSettings(domain=source), DomainSettings(domain=target))
    return source if side == "source" else target


@pytest.mark.parametrize(
    ("domain", "train", "val", "test"),
    [
        ("usa", 390, 0, 77),
        ("singapore", 241, 69, 73),
        ("day", 616, 0, 135),
        ("night", 69, 15, 15),
        ("all", 630, 70, 150),
    ],
)
def test_scene_counts_are_the_published_ones(full_size, domain, train, val, test):
    for split, expected in (("train", train), ("val", val), ("test", test)):
        if expected:
            assert len(scenes_of(full_size, domain_frames(full_size, domain, split))) == expected
        else:
            with pytest.raises(DataError, match="No frame"):
                domain_frames(full_size, domain, split)


@pytest.mark.parametrize(("source", "target"), SHIFTS)
def test_no_scene_serves_two_purposes_in_a_published_shift(full_size, source, target):
    validated_on = validation_domain(source, target)
    val = scenes_of(full_size, domain_frames(full_size, validated_on, "val"))
    test = scenes_of(full_size, domain_frames(full_size, target, "test"))
    for domain in (source, target):
        train = domain_frames(full_size, domain, "train", validated_on=validated_on)
        np.testing.assert_array_equal(train, domain_frames(full_size, domain, "train"))
        assert not scenes_of(full_size, train) & val
        assert not scenes_of(full_size, train) & test
    assert not val & test


@pytest.mark.parametrize("source", CITY_DOMAINS)
@pytest.mark.parametrize("target", CITY_DOMAINS)
def test_training_never_sees_the_scenes_it_is_validated_on(full_size, source, target):
    try:
        validated_on = validation_domain(source, target)
    except ConfigError:
        assert {source, target} <= {"usa", "day"}
        return
    val = scenes_of(full_size, domain_frames(full_size, validated_on, "val"))
    for domain in (source, target):
        assert not val & scenes_of(full_size, domain_frames(full_size, domain, "train", validated_on=validated_on))


def test_held_out_scenes_depend_on_names_and_not_on_order(full_size):
    def scene(row):
        return tuple(str(c[row]) for c in (frames.scene, frames.location, frames.description, frames.split))

    frames = full_size.frames
    shuffled = make_index([scene(row) for row in np.random.default_rng(0).permutation(len(frames.key))], 1)
    for domain in ("night", "singapore", "all"):
        rows, other = domain_frames(full_size, domain, "val"), domain_frames(shuffled, domain, "val")
        assert scenes_of(full_size, rows) == scenes_of(shuffled, other)


def test_a_small_domain_keeps_scenes_for_training_and_one_for_validation():
    scenes = [(f"scene-{n:04d}", "singapore-onenorth", "Night", "train") for n in range(3)]
    index = make_index(scenes)
    assert len(domain_frames(index, "night", "val")) == 2
    assert len(domain_frames(index, "night", "train")) == 4


def test_a_single_scene_is_kept_for_training():
    index = make_index([("scene-0061", "singapore-onenorth", "Day", "train")])
    assert len(domain_frames(index, "singapore", "train")) == 2
    with pytest.raises(DataError, match="No frame"):
        domain_frames(index, "singapore", "val")


def test_benchmark_domains_are_distinguished_by_the_whole_name_and_hold_a_fifth_out():
    names = ["streets", "streets-fog"]
    index = make_index(
        [(f"scene-{n:04d}", "boston-seaport", f"Domain {names[n % 2]}, fog, cars", "train") for n in range(20)]
    )
    found = {name: {split: set(domain_frames(index, name, split)) for split in ("train", "val")} for name in names}
    assert all(len(splits["val"]) == 4 and len(splits["train"]) == 16 for splits in found.values())
    assert not found["streets"]["train"] & found["streets-fog"]["train"]
    assert validation_domain("usa", "streets-fog") == "streets-fog"


def test_an_empty_selection_lists_what_there_is():
    index = make_index([("scene-0061", "boston-seaport", "Day", "train"), ("scene-0003", "boston", "Night", "val")])
    with pytest.raises(DataError) as caught:
        domain_frames(index, "singapore", "train")
    assert "usa 2/0/2" in str(caught.value)
    assert "night 0/0/2" in str(caught.value)


@pytest.mark.parametrize(("domain", "split", "hint"), [("use", "train", "'usa'"), ("usa", "trian", "'train'")])
def test_a_mistyped_name_gets_the_nearest(full_size, domain, split, hint):
    with pytest.raises(ConfigError, match=hint):
        domain_frames(full_size, domain, split)


def test_a_shift_whose_domains_hold_out_nothing_is_refused():
    with pytest.raises(ConfigError, match="singapore"):
        validation_domain("usa", "day")


def test_the_tiny_root_has_frames_in_every_published_shift(tiny_nuscenes_root):
    from xd3d.stages.datasets.nuscenes import build_index

    index = build_index(tiny_nuscenes_root)
    for source, target in SHIFTS:
        assert len(domain_frames(index, source, "train"))
        assert len(domain_frames(index, validation_domain(source, target), "val"))
        assert len(domain_frames(index, target, "test"))


def other_index(dataset: str, scenes: list[tuple[str, str, str, str]]) -> FrameIndex:
    return dataclasses.replace(make_index(scenes, 1), dataset=dataset)


def test_semantickitti_is_split_as_the_papers_have_it():
    splits = {number: "train" if number < 11 else "test" for number in range(22)} | {8: "val"}
    index = other_index("semantickitti", [(f"{number:02d}", "", "", split) for number, split in splits.items()])
    found = {split: scenes_of(index, domain_frames(index, "all", split)) for split in ("train", "val", "test")}
    assert found == {"train": {"00", "01", "02", "03", "04", "05", "06", "09", "10"}, "val": {"07"}, "test": {"08"}}
    assert len(domain_frames(index, "official", "train")) == 10
    assert scenes_of(index, domain_frames(index, "official", "val")) == {"08"}
    assert scenes_of(index, domain_frames(index, "official", "test")) == {str(number) for number in range(11, 22)}
    assert len(domain_frames(index, "all", "all")) == len(domain_frames(index, "official", "all")) == 22


@pytest.mark.parametrize("dataset", ["nuscenes", "semantickitti"])
def test_an_index_of_official_test_scenes_alone_has_them_in_test(dataset):
    index = other_index(dataset, [("11", "boston-seaport", "", "test"), ("12", "singapore-onenorth", "", "test")])
    for domain, rows in (("all", [0, 1]), *([("usa", [0]), ("singapore", [1])] if dataset == "nuscenes" else [])):
        assert domain_frames(index, domain, "test").tolist() == rows
        with pytest.raises(DataError, match="No frame"):
            domain_frames(index, domain, "train")


def test_semanticstf_has_a_domain_for_each_weather_and_is_validated_on_its_source():
    index = other_index("semanticstf", [("val", "", "rain", "val"), ("val", "", "snow", "val")])
    assert domain_frames(index, "snow", "test").tolist() == [1]
    assert domain_frames(index, "all", "test").tolist() == [0, 1]
    source = DomainSettings(dataset="semantickitti", domain="official")
    assert validation_side(source, DomainSettings(dataset="semanticstf")) == "source"


def test_synlidar_holds_one_of_its_13_sequences_out():
    index = other_index("synlidar", [(f"{number:02d}", "", "", "train") for number in range(13)])
    assert len(domain_frames(index, "all", "val")) == 1
    assert len(domain_frames(index, "all", "train")) == 12
