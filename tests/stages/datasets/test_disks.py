"""Files as disks have them: images by their content, texts of any system, links, and folders that are listed alike."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from xd3d.errors import DataError, MissingDataError
from xd3d.stages.datasets import folder, nuscenes, semantickitti
from xd3d.stages.datasets.checks import common_size, image_fault, run_checks
from xd3d.stages.datasets.frames import load_frame
from xd3d.stages.datasets.listing import find_stems, without_copies
from xd3d.stages.datasets.prepare import prepare_dataset
from xd3d.stages.datasets.sweeps import load_sweep
from xd3d.stages.datasets.text_files import read_text

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))


def encoded(kind: str, **options) -> bytes:
    stream = BytesIO()
    PICTURE.save(stream, kind, **options)
    return stream.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", exif=exif)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jpg", encoded("JPEG") + b"made by a camera" * 9),
        ("a.png", encoded("JPEG")),
        ("a.png", encoded("PNG") + b"\0" * 100),
        ("a.jpg", encoded("PNG")),
    ],
)
def test_whole_images_are_whole_whatever_they_are_called_and_whatever_follows(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert image_fault(tmp_path / name, (64, 48)) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_that_ends_early_is_truncated(tmp_path, kind):
    content = encoded(kind)
    (tmp_path / "a").write_bytes(content[: len(content) * 2 // 3])
    assert "truncated" in str(image_fault(tmp_path / "a", (64, 48)))


def test_an_orientation_tag_is_reported_and_the_stored_size_counts(tmp_path, caplog):
    (tmp_path / "a.jpg").write_bytes(turned())
    assert run_checks([(tmp_path / "a.jpg", lambda: image_fault(tmp_path / "a.jpg", (64, 48)))], 1) == []
    assert "EXIF" in caplog.text


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", "a: 1\nb: 2\n".encode("utf-16"), b"a: 1\rb: 2\r"])
def test_texts_of_other_systems_are_read(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt", "list", "again") == "a: 1\nb: 2\n"


def test_a_copy_counts_where_its_original_is_gone(tmp_path, caplog):
    names = ["a.bin", "a (1).bin", "a - Copy.bin", "b (1).bin", "run copy 2.bin", "c_1.bin", "c.bin"]
    kept = without_copies(tmp_path / name for name in names)
    assert [path.name for path in kept] == ["a.bin", "b (1).bin", "c.bin", "c_1.bin", "run copy 2.bin"]
    assert "2 copies" in caplog.text


@pytest.mark.parametrize("suffix", [".jpg", ".PNG", ".jpeg"])
def test_kitti_images_of_other_suffixes_give_the_same_frames(copy_of, suffix):
    root = copy_of("semantickitti")
    before = semantickitti.build_index(root)
    for path in root.rglob("image_2/*.png"):
        Image.open(path).save(path.with_suffix(suffix))
        path.unlink()
    after = semantickitti.build_index(root)
    assert semantickitti.check_files(after) == []
    assert {Path(str(path)).suffix for path in after.images.path} == {suffix}
    np.testing.assert_array_equal(after.images.key, before.images.key)
    np.testing.assert_array_equal(load_frame(after, 0, None).projection_uv, load_frame(before, 0, None).projection_uv)


def test_both_forms_of_an_image_are_one_and_the_published_one_counts(copy_of):
    root = copy_of("semantickitti")
    digest = semantickitti.build_index(root).digest
    for path in root.rglob("image_2/*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
    assert semantickitti.build_index(root).digest == digest
    assert find_stems(root / "nowhere", [".png"]) == {}


def test_a_folder_without_images_names_what_it_holds(copy_of):
    root = copy_of("semantickitti")
    for path in root.rglob("image_2/*.png"):
        path.rename(path.with_suffix(".webp"))
    with pytest.raises(DataError, match=r"image_2 .*\.webp"):
        semantickitti.build_index(root)


def scaled(calibration: str, scale: tuple[float, ...]) -> str:
    """KITTI's projection matrices for images that were scaled by x and y."""
    lines = []
    for name, _, numbers in (line.partition(":") for line in calibration.splitlines() if line.strip()):
        values = np.array(numbers.split(), float)
        if name.startswith("P"):
            values = (values.reshape(3, 4) * np.array(scale)[:, None]).ravel()
        lines.append(f"{name}: {' '.join(map(repr, values.tolist()))}")
    return "\n".join(lines) + "\n"


def test_images_of_several_sizes_need_a_calibration_each(copy_of, monkeypatch):
    root = copy_of("folder")
    paths = sorted((root / "dataset/sequences/00/image_2").glob("*.png"))
    with Image.open(paths[-1]) as image:
        scale = 120 / image.width, 40 / image.height, 1
        image.resize((120, 40)).save(paths[-1])
    assert any("120x40" in fault.reason for fault in folder.check_files(folder.build_index(root)))
    for scene in (root / "dataset/sequences").iterdir():
        for path in scene.glob("image_2/*.png"):
            (scene / "calib").mkdir(exist_ok=True)
            text = (scene / "calib.txt").read_text()
            (scene / f"calib/{path.stem}.txt").write_text(scaled(text, scale) if path == paths[-1] else text)
    text = (root / "dataset.yaml").read_text()
    (root / "dataset.yaml").write_text(text.replace("calib.txt", "calib/{frame}.txt"))
    listed = []
    monkeypatch.setattr(folder, "common_size", lambda paths, root: listed.extend(paths) or common_size(paths, root))
    index = folder.build_index(root)
    assert len(listed) <= len(index.images.key)  # not all images for each of them
    assert folder.check_files(index) == []
    assert index.images.size[index.images.path == paths[-1].relative_to(root).as_posix()].tolist() == [[120, 40]]


def test_a_pattern_with_another_suffix_names_the_files_that_are_there(copy_of):
    root = copy_of("folder")
    text = (root / "dataset.yaml").read_text()
    (root / "dataset.yaml").write_text(text.replace("{frame}.png", "{frame}.jpg"))
    with pytest.raises(MissingDataError, match=r"images\.image_2.*with \.png"):
        folder.build_index(root)


def test_links_out_of_a_nuscenes_root_are_refused_unless_they_are_allowed(copy_of, tmp_path):
    root = copy_of("nuscenes")
    digest = nuscenes.build_index(root).digest
    (tmp_path / "elsewhere").mkdir()
    for number, path in enumerate((root / "samples").rglob("*.*")):
        path.rename(tmp_path / f"elsewhere/{number}")
        path.symlink_to(tmp_path / f"elsewhere/{number}")
    with pytest.raises(DataError, match=r"elsewhere.*--follow-links"):
        nuscenes.build_index(root)
    assert prepare_dataset("nuscenes", root, tmp_path / "index", follow_links=True).missing == ()
    assert nuscenes.build_index(root, follow_links=True).digest == digest


def test_a_pipe_is_no_sweep_and_a_float_image_is_found_by_prepare(copy_of, tmp_path):
    os.mkfifo(tmp_path / "000000.bin")
    with pytest.raises(DataError, match=r"000000\.bin"):
        load_sweep(tmp_path / "000000.bin")
    path = tmp_path / "thermal.tif"
    Image.fromarray(np.ones((4, 6), np.float32)).save(path)
    assert "8 or 16 bits" in str(image_fault(path, (6, 4)))


@pytest.mark.parametrize("copy", ["copy of {}", "Copy (2) of {}", "{} - Kopie", "{} - Copy (2)", "{} (1)"])
def test_copies_are_left_aside_beside_their_original(tmp_path, copy):
    names = [tmp_path / "000001.bin", tmp_path / f"{copy.format('000001')}.bin"]
    assert without_copies(names) == names[:1]
    assert without_copies(names[1:]) == names[1:]


def test_labels_without_any_class_are_found_by_prepare(copy_of, tmp_path):
    root = copy_of("folder")
    description = yaml.safe_load((root / "dataset.yaml").read_text())
    description["classes"] = {name: [60000 + place] for place, name in enumerate(description["classes"])}
    (root / "dataset.yaml").write_text(yaml.safe_dump(description))
    with pytest.raises(DataError, match=r"60000.*classes"):
        prepare_dataset("folder", root, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_folder_whose_first_frame_is_not_annotated_is_prepared(copy_of, tmp_path):
    root = copy_of("folder")
    for path in root.glob("dataset/sequences/*/labels"):
        first = min(path.iterdir())
        np.zeros_like(np.fromfile(first, "<u4")).tofile(first)
    assert prepare_dataset("folder", root, tmp_path / "index").index == tmp_path / "index"


def test_an_image_that_is_damaged_inside_is_named_by_prepare(copy_of, tmp_path):
    root = copy_of("folder")
    path = min(root.glob("dataset/sequences/00/image_2/*.png"))
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes(50) + content[250:])
    assert folder.check_files(folder.build_index(root)) == []
    with pytest.raises(DataError, match=rf"{path.name} cannot be decoded .*--allow-missing"):
        prepare_dataset("folder", root, tmp_path / "index")
    path.unlink()
    assert len(prepare_dataset("folder", root, tmp_path / "index", allow_missing=True).left_out) == 1


def test_the_folder_of_the_picture_of_a_calibration_is_made(copy_of, tmp_path):
    picture = tmp_path / "new/points.png"
    prepare_dataset("folder", copy_of("folder"), tmp_path / "index", picture=picture)
    assert picture.is_file()
