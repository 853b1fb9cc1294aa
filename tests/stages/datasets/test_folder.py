"""A folder of one's own: patterns, splits, label files, and the faults of its description."""

import numpy as np
import pytest
import yaml
from xd3d.errors import ConfigError, DataError, MissingDataError
from xd3d.stages.datasets import folder_description
from xd3d.stages.datasets.folder import build_index, check_files
from xd3d.stages.datasets.folder_description import find_files
from xd3d.stages.datasets.frames import load_frame
from xd3d.stages.datasets.index import FrameIndex
from xd3d.stages.datasets.labels import IGNORE, get_merge, index_merge
from xd3d.stages.datasets.splits import domain_frames

BASE = {"sweeps": "scans/{frame}.npy", "labels": "labels/{frame}.npy", "classes": {"road": [1, 2], "car": 7}}
RAW = np.array([1, 2, 7, 3, 7])


@pytest.fixture
def folder(tmp_path):
    """Call it with keys of ``dataset.yaml`` for a folder of four sweeps, a to d, with labels."""

    def make(**keys):
        for kind, values in (("scans", np.arange(15.0).reshape(5, 3)), ("labels", RAW)):
            (tmp_path / kind).mkdir(exist_ok=True)
            for name in "abcd":
                np.save(tmp_path / kind / f"{name}.npy", values)
        (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({**BASE, **keys}, sort_keys=False))
        return tmp_path

    return make


def test_patterns_find_files_by_scene_and_frame(tmp_path):
    for path in ("one/x_1.png", "one/x_2.png", "two/y_1.png", "two/deep/z_1.png", "one/x_1.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert find_files(tmp_path, "{scene}/*_{frame}.png") == {
        ("one", "1"): "one/x_1.png",
        ("one", "2"): "one/x_2.png",
        ("two", "1"): "two/y_1.png",
    }
    assert find_files(tmp_path, "{scene}/{scene}_{frame}.png") == {}


def test_splits_and_domains_are_those_of_the_description(folder):
    root = folder(val=["a"], test="tested.txt", domains={"first": ["[a-c]"]})
    (root / "tested.txt").write_text("b\nd\n")
    index = build_index(root)
    found = {
        (domain, split): [str(index.frames.key[row]) for row in domain_frames(index, domain, split)]
        for domain in ("all", "first")
        for split in ("train", "val", "test")
    }
    assert list(found.values()) == [["c"], ["a"], ["b", "d"], ["c"], ["a"], ["b"]]
    with pytest.raises(DataError, match="all 1/1/2, first 1/1/1"):
        domain_frames(index, "last", "train")


def test_names_of_a_mac_are_those_of_other_systems(folder):
    root = folder(val=["s\u00fcd"])
    for path in root.glob("*/a.npy"):
        path.rename(path.with_stem("su\u0308d"))
    assert build_index(root).frames.split.tolist() == ["train", "train", "train", "val"]


def test_a_name_with_brackets_is_that_frame_and_a_glob_too(folder):
    root = folder(val=["[x] a"], test=["[bc]"])
    for path in root.glob("*/a.npy"):
        path.rename(path.with_stem("[x] a"))
    index = build_index(root)
    assert dict(zip(index.frames.key.tolist(), index.frames.split.tolist(), strict=True)) == {
        "[x] a": "val",
        "b": "test",
        "c": "test",
        "d": "train",
    }


def test_a_long_list_of_frames_is_not_compared_with_every_frame(folder, monkeypatch):
    monkeypatch.setattr(folder_description, "fnmatchcase", None)
    assert build_index(folder(val=["a", "c"])).frames.split.tolist() == ["val", "train", "val", "train"]


def test_names_are_what_they_look_like_and_not_what_yaml_makes_of_them(tmp_path):
    scenes = ("0001", "0010", "2011_09_26", "2011-09-26", "8", "no")
    for scene in scenes:
        (tmp_path / scene).mkdir()
        for kind, values in (("s", np.ones((5, 3))), ("l", RAW)):
            np.save(tmp_path / scene / f"{kind}0.npy", values)
    (tmp_path / "dataset.yaml").write_text(
        "sweeps: '{scene}/s{frame}.npy'\nlabels: '{scene}/l{frame}.npy'\nclasses: {no: [1, 02], on: 7}\n"
        "val: [0010, 2011_09_26]\ntest: [2011-09-26, no]\ndomains: {2011: [0001, 8]}\n"
    )
    index = build_index(tmp_path)
    split = dict(zip(index.frames.scene.tolist(), index.frames.split.tolist(), strict=True))
    assert split == dict(zip(scenes, ["train", "val", "val", "test", "train", "test"], strict=True))
    assert set(index.frames.scene[index.frames.location == "2011"]) == {"0001", "8"}
    assert index.described["classes"] == {"no": [1, 2], "on": [7]}


def test_classes_are_its_own_or_those_of_a_merge_that_it_names(folder, tmp_path):
    index = build_index(folder(unlabelled=["d"]))
    index.save(tmp_path / "index")
    index = FrameIndex.load(tmp_path / "index")
    own = index_merge("folder", index)
    assert own.classes == ("road", "car")
    assert own.raw_ids.tolist() == [1, 7]
    assert load_frame(index, 0, own).labels.tolist() == [0, 0, 1, IGNORE, 1]
    assert set(load_frame(index, 3, own).labels.tolist()) == {IGNORE}
    published = index_merge("semantickitti-19", index)
    names = [published.classes[label] for label in load_frame(index, 0, published).labels if label != IGNORE]
    assert names == ["road", "road", "car", "car"]
    with pytest.raises(ConfigError, match=r"car.*data\.merge=folder"):
        index_merge("nuscenes-6", index)


@pytest.mark.parametrize(
    "changed", [{"val": ["a"]}, {"test": ["a"]}, {"domains": {"x": ["a"]}}, {"classes": {"car": 7}}]
)
def test_a_change_of_splits_domains_or_classes_makes_another_index_and_one_of_ignored_ids_does_not(folder, changed):
    digest = build_index(folder()).digest
    assert build_index(folder(ignore=[9])).digest == digest
    assert build_index(folder(**changed)).digest != digest


def test_without_labels_no_class_need_be_named_and_those_of_a_merge_hold(folder):
    root = folder()
    (root / "dataset.yaml").write_text(yaml.safe_dump({"sweeps": BASE["sweeps"]}))
    index = build_index(root)
    assert not index.has_labels(np.arange(4))
    merge = index_merge("nuscenes-6", index, labelled=False)
    assert merge.classes == get_merge("nuscenes-6").classes
    assert set(load_frame(index, 0, merge).labels.tolist()) == {IGNORE}
    with pytest.raises(ConfigError, match="names no classes"):
        index_merge("folder", index, labelled=False)


@pytest.mark.parametrize(
    ("suffix", "values"), [(".label", RAW.astype("<u4") | 3 << 16), (".bin", RAW.astype("u1")), (".npy", RAW)]
)
def test_label_files_of_every_kind_are_read_and_counted(folder, suffix, values):
    root = folder(labels=f"labels/{{frame}}{suffix}")
    for name in "abcd":
        path = root / "labels" / f"{name}{suffix}"
        np.save(path, values) if suffix == ".npy" else values.tofile(path)
    index = build_index(root)
    assert load_frame(index, 1, index_merge("folder", index)).labels.tolist() == [0, 0, 1, IGNORE, 1]
    assert check_files(index) == []
    np.save(path, values[:4]) if suffix == ".npy" else values[:4].tofile(path)
    (fault,) = check_files(index)
    assert fault.path == path
    assert "has 4 entries, its sweep has 5 points" in fault.reason


INSTANCES = RAW | 9 << 16


def write_raw(dtype, values=RAW):
    return lambda path: values.astype(dtype).tofile(path)


def write_ply(path, values=RAW, name="label"):
    head = "ply\nformat ascii 1.0\nelement vertex 5\nproperty float x\nproperty float y\nproperty float z\n"
    rows = "\n".join(f"{row} 0 0 {value}" for row, value in enumerate(values))
    path.write_text(f"{head}property int {name}\nend_header\n{rows}\n")


@pytest.mark.parametrize(
    ("suffix", "write", "keys"),
    [
        (".npy", lambda path: np.save(path, np.where(RAW == 3, -1, RAW)), {"ignore": [-1]}),
        (".npy", lambda path: np.save(path, INSTANCES.astype(np.uint32)), {}),
        (".npy", lambda path: np.save(path, RAW[:, None].astype(np.float32)), {}),
        (".npy", lambda path: np.save(path, np.where(RAW == 3, np.nan, RAW)), {}),
        (".npy", lambda path: np.save(path, np.stack([RAW * 0, RAW, RAW + 1], 1)), {"label_field": 1}),
        (".label", write_raw("<i8", np.where(RAW == 3, -1, RAW)), {}),
        (".bin", write_raw("u1", np.where(RAW == 3, 255, RAW)), {"ignore": [255]}),
        (".bin", write_raw("<u4", INSTANCES), {}),
        (".bin", write_raw("<i8"), {}),
        (".bin", write_raw("<u2"), {}),
        (".label", write_raw("<u2"), {}),
        (".bin", lambda path: np.c_[np.zeros((5, 4)), RAW].astype("<f4").tofile(path), {"label_field": 4}),
        (".ply", write_ply, {}),
        (".ply", lambda path: write_ply(path, INSTANCES, "scalar_Classification"), {}),
        (".ply", lambda path: write_ply(path, name="mine"), {"label_field": "mine"}),
        (".txt", lambda path: np.savetxt(path, np.stack([RAW * 0, RAW], 1), "%d"), {"label_field": 1}),
        (".txt", lambda path: path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(b"%d" % raw for raw in RAW)), {}),
    ],
)
def test_labels_of_any_layout_are_read(folder, suffix, write, keys):
    root = folder(labels=f"ids/{{frame}}{suffix}", **keys)
    (root / "ids").mkdir()
    for name in "abcd":
        write(root / "ids" / f"{name}{suffix}")
    index = build_index(root)
    assert check_files(index) == []
    assert load_frame(index, 1, index_merge("folder", index)).labels.tolist() == [0, 0, 1, IGNORE, 1]


def test_labels_in_a_column_of_the_sweeps_need_no_file_of_their_own(folder):
    root = folder(labels=None, label_field=3)
    for name in "abcd":
        np.save(root / "scans" / f"{name}.npy", np.c_[np.arange(15.0).reshape(5, 3), RAW])
    index = build_index(root)
    assert check_files(index) == []
    assert load_frame(index, 1, index_merge("folder", index)).labels.tolist() == [0, 0, 1, IGNORE, 1]


@pytest.mark.parametrize(
    ("suffix", "write", "facts"),
    [
        (".npy", lambda path: np.save(path, np.stack([RAW, RAW], 1)), ["[5, 2]", "label_field"]),
        (".txt", lambda path: np.savetxt(path, np.stack([RAW, RAW], 1), "%d"), ["[5, 2]", "label_field"]),
        (".npy", lambda path: np.save(path, RAW + 0.5), ["not whole"]),
        (".npy", lambda path: np.save(path, np.eye(9)[RAW]), ["one-hot", "argmax(axis=1)"]),
        (".label", write_raw("<f4"), ["float32", "write uint32"]),
        (".label", write_raw(">u4"), ["big-endian", "write uint32"]),
        (".npz", lambda path: np.savez(path, RAW), ["'.npz'", ".npy"]),
        (".csv", lambda path: path.write_text("point,label\n" + "0,1\n" * 20), ["text", ".txt"]),
        (".ply", lambda path: write_ply(path, name="mine"), ["x, y, z, mine", "label_field"]),
        (".label", write_raw("<u4", RAW[:3]), ["3 entries", "5 points"]),
        (".label", write_raw("u1"), ["one byte", "5 points"]),
        (".ply", lambda path: write_ply(path, RAW[:3]), ["truncated"]),
    ],
)
def test_labels_that_are_none_are_named_with_what_was_found(folder, suffix, write, facts):
    root = folder(labels=f"ids/{{frame}}{suffix}", unlabelled=["b", "c", "d"])
    (root / "ids").mkdir()
    write(root / "ids" / f"a{suffix}")
    (fault,) = check_files(build_index(root))
    assert fault.path.name == f"a{suffix}"
    assert all(fact in fault.reason for fact in facts)
    assert fault.reason.count(fault.path.name) <= 1


def test_labels_of_half_as_many_points_are_not_read_as_16_bits(folder):
    """Sweeps of eight columns that are taken for four: as many bytes as for labels of 16 bits."""
    root = folder(sweeps="raw/{frame}.bin", labels="ids/{frame}.label", columns=4)
    for kind in ("raw", "ids"):
        (root / kind).mkdir()
    rng = np.random.default_rng(0)
    for name, instance in zip("abcd", (0, 1, 3, 9), strict=True):
        rng.normal(0, 9, (500, 8)).astype("<f4").tofile(root / "raw" / f"{name}.bin")
        (rng.choice([1, 2, 7], 500) | instance * rng.integers(0, 9, 500) << 16).astype("<u4").tofile(
            root / "ids" / f"{name}.label"
        )
    assert ["columns: 8" in fault.reason for fault in check_files(build_index(root))] == [True] * 4


def test_labels_that_fit_other_columns_of_the_sweep_say_so(folder):
    root = folder(sweeps="raw/{frame}.bin", labels="labels/{frame}.npy")
    (root / "raw").mkdir()
    for name in "abcd":
        np.arange(40, dtype="<f4").tofile(root / "raw" / f"{name}.bin")
    assert {"columns: 8" in fault.reason for fault in check_files(build_index(root))} == {True}


def test_labels_in_a_sweep_need_their_column(folder):
    root = folder(sweeps="raw/{frame}.bin", labels="raw/{frame}.bin")
    (root / "raw").mkdir()
    for name in "abcd":
        np.arange(20, dtype="<f4").tofile(root / "raw" / f"{name}.bin")
    assert {"label_field" in fault.reason for fault in check_files(build_index(root))} == {True}


def test_raw_sweeps_have_the_columns_of_the_description(folder):
    root = folder(sweeps="raw/{frame}.bin", columns=6)
    (root / "raw").mkdir()
    for name in "abcd":
        np.arange(30, dtype="<f4").reshape(5, 6).tofile(root / "raw" / f"{name}.bin")
    index = build_index(root)
    assert load_frame(index, 0, None).points[1].tolist() == [6, 7, 8]


def test_raw_sweeps_of_other_columns_are_reported_by_their_values_with_the_key_that_says_so(folder, caplog):
    root = folder(sweeps="raw/{frame}.bin", labels="ids/{frame}.label")
    rng = np.random.default_rng(0)
    for kind in ("raw", "ids"):
        (root / kind).mkdir()
    for name in "abcd":
        five = np.column_stack([rng.normal(0, 20, (4000, 3)), rng.uniform(0, 255, 4000), rng.integers(0, 32, 4000)])
        five.astype("<f4").tofile(root / "raw" / f"{name}.bin")
        np.ones(4000, "<u4").tofile(root / "ids" / f"{name}.label")
    index = build_index(root)
    assert "columns: 5" in caplog.text
    assert check_files(index) == []
    assert len(load_frame(index, 0, None).points) == 4000
    assert index.digest == build_index(folder(sweeps="raw/{frame}.bin", labels="ids/{frame}.label", columns=5)).digest


def test_raw_sweeps_of_doubles_are_read_with_the_key_that_says_so(folder, caplog):
    rng = np.random.default_rng(0)
    points = rng.normal([5e5, 5e6, 0], 20, (3000, 3))
    rows = np.column_stack([points, rng.uniform(0, 1, 3000), np.ones(3000)])
    keys = {"sweeps": "raw/{frame}.bin", "labels": None, "label_field": 4}
    root = folder(**keys)
    (root / "raw").mkdir()
    for name in "abcd":
        rows.astype("<f8").tofile(root / "raw" / f"{name}.bin")
    index = build_index(root)
    assert "'columns: 5' and 'dtype: float64'" in caplog.text
    assert check_files(index) == []
    frame = load_frame(index, 0, index_merge("folder", index))
    np.testing.assert_array_equal(frame.points, rows[:, :3])
    assert frame.labels.tolist() == [0] * 3000
    caplog.clear()
    assert build_index(folder(**keys, columns=5, dtype="float64")).digest == index.digest
    assert "dtype" not in caplog.text
    faults = check_files(build_index(folder(**keys, columns=5, dtype="float32")))
    assert {"float64" in fault.reason for fault in faults} == {True}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sweeps": "scans/all.npy"}, r"needs \{frame\}"),
        ({"labels": "labels/{scene}/{frame}.npy"}, "same fields in braces"),
        ({"labels": "labels/{name}.npy", "sweeps": "scans/{name}.npy"}, r"\{name\} is unknown"),
        ({"images": {"front": "{frame}.png"}}, "images need a calibration"),
        ({"labels": None, "label_field": 3, "classes": {}}, "label_field.* need classes"),
        ({"sweeps": "C:\\scans\\{frame}.npy"}, "has a backslash; separate folders by '/'"),
        ({"labels": "labels/{frame}.txt"}, "'a' and '0'; files of one frame need one name"),
        ({"classes": {"road": [1], "car": [1]}}, "each id, 0 to 65535, to one class, and have 1"),
        ({"clases": {}}, "clases: unknown key; did you mean 'classes'"),
        ({"classes": {"road": None}}, "road has no id"),
        ({"classes": {None: 1}}, "null .* quotes"),
        ({"classes": {1: "road"}}, "write names first: {road: 1}"),
        ({"val": [None]}, "val: must be a list of frames"),
        ({"dtype": "double"}, "dtype: .*'float32' or 'float64'"),
        ({"ignore": [7]}, "ignore has 7"),
        ({"val": ["z"]}, "No frame and no scene matches 'z' under val"),
        ({"val": ["a"], "test": ["[ab]"]}, "Frame a is in 'val' and in 'test'"),
        ({"domains": {"all": ["a"]}}, "already means every frame"),
        ({"domains": {"target": ["a"]}}, "the sides of a shift"),
        ({"domains": {"../elsewhere": ["a"]}}, "have letters, digits"),
    ],
)
def test_a_faulty_description_says_what_is_wrong(folder, keys, message):
    (folder() / "labels/0.txt").touch()
    with pytest.raises(DataError, match=message):
        build_index(folder(**keys))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('sweeps: "scans\\{frame}.npy"', "not by a backslash"),
        ("sweeps: a/{frame}.npy\nimages: {front: {frame}.png}", "need quotes"),
        ("sweeps: a/{frame}.npy\nclasses:\n\troad: 1", "spaces, not by tabs"),
        ("sweeps: a/{frame}.npy\nsweeps: b/{frame}.npy", "'sweeps' twice"),
        ("- sweeps", "a list instead of keys"),
    ],
)
def test_a_description_that_is_no_yaml_gets_a_hint_that_fits(tmp_path, text, hint):
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(DataError, match=hint) as caught:
        build_index(tmp_path)
    assert ("quotes" in str(caught.value)) == ("quotes" in hint)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sweeps": "clouds/{frame}.npy", "labels": None}, "of the sweeps"),
        ({"test": "list.txt"}, "The list .* is missing"),
        ({"val": "a"}, r"write .*\[a\] if that is a frame"),
    ],
)
def test_files_that_are_not_where_the_description_says_are_missed(folder, keys, message):
    with pytest.raises(MissingDataError, match=message):
        build_index(folder(**keys))
