"""VirtualKITTI: both versions give the same points, one weather is drawn, and what is wrong with files is named."""

import numpy as np
import pytest
from PIL import Image
from xd3d.errors import ConfigError, DataError, MissingDataError
from xd3d.stages.datasets.catalogue import VIRTUALKITTI
from xd3d.stages.datasets.frames import load_frame
from xd3d.stages.datasets.labels import IGNORE, get_merge
from xd3d.stages.datasets.virtualkitti import WEATHERS, build_index, check_files, read_sweep

MERGE = get_merge("virtualkitti-semantickitti-6", "virtualkitti")


def test_the_classes_are_the_published_ones():
    found = {VIRTUALKITTI[raw]: MERGE.classes[number] for raw, number in enumerate(MERGE.lut) if number >= 0}
    assert found == {
        **dict.fromkeys(("Terrain", "Tree", "Vegetation"), "vegetation_terrain"),
        **dict.fromkeys(("TrafficSign", "TrafficLight", "Pole", "Misc"), "object"),
        **{"Building": "building", "Road": "road", "Truck": "truck", "Car": "car"},
    }


def test_depth_images_give_the_points_labels_and_pixels_of_the_point_clouds(root_of):
    root = root_of("virtualkitti")
    clouds, depths = (build_index(root, version=version) for version in ("npy", "depth"))
    assert check_files(depths) == []
    for row in range(len(clouds.frames.key)):
        one, other = load_frame(clouds, row, MERGE), load_frame(depths, row, MERGE)
        np.testing.assert_array_equal(one.points, other.points)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.projection_uv, other.projection_uv, atol=1e-6)


def test_every_point_falls_on_the_pixel_that_it_was_made_from(root_of):
    index = build_index(root_of("virtualkitti"), version="depth")
    size = index.images.size[0]
    depth = np.asarray(Image.open(index.root / str(index.frames.sweep[0]))) / 100
    frame = load_frame(index, 0, MERGE)
    columns, rows = np.floor(frame.projection_uv * size).astype(int).T
    np.testing.assert_allclose(frame.points[:, 0], depth[rows, columns], rtol=1e-6)
    assert np.linalg.norm(frame.points, axis=1).max() < 100


def test_the_tools_number_of_sky_is_ignored_and_another_unknown_one_is_found_by_prepare(copy_of):
    index = build_index(copy_of("virtualkitti"), version="npy", cameras="none")
    path = index.root / str(index.frames.sweep[0])
    cloud = np.load(path)
    expected = load_frame(index, 0, MERGE).labels
    cloud[:20, 6] = 99
    np.save(path, cloud)
    assert check_files(index) == []
    assert load_frame(index, 0, MERGE).labels.tolist() == [IGNORE] * 20 + expected[20:].tolist()
    cloud[30, 6] = 42
    np.save(path, cloud)
    (fault,) = check_files(index)
    assert fault.path == path
    assert "42" in fault.reason


def test_training_draws_a_weather_and_evaluation_takes_the_clone(root_of):
    index = build_index(root_of("virtualkitti"))
    assert len(index.images_of(0)) == len(WEATHERS)
    assert load_frame(index, 1, MERGE).image_rows.tolist() == [index.images_of(1)[0]]
    rng = np.random.default_rng(0)
    drawn = {int(load_frame(index, 1, MERGE, rng=rng).image_rows[0]) for _ in range(40)}
    assert drawn == set(index.images_of(1).tolist())
    assert "clone" in str(index.images.path[index.images_of(1)[0]])


def test_a_root_without_some_weathers_says_how_to_go_on(copy_of):
    root = copy_of("virtualkitti")
    (root / "vkitti_1.3.1_rgb/0002/fog").rename(root / "elsewhere")
    with pytest.raises(MissingDataError, match=r"0002/fog.*missing.*--cameras"):
        build_index(root)
    assert len(build_index(root, cameras="clone").images.key) == 2


def test_a_version_that_is_not_there_or_not_known_is_refused(copy_of):
    root = copy_of("virtualkitti")
    (root / "vkitti3d_npy").rename(root / "vkitti_npy")
    assert build_index(root).version == "npy"
    (root / "vkitti_npy").rename(root / "other")
    assert build_index(root).version == "depth"
    with pytest.raises(MissingDataError, match="holds only the version depth"):
        build_index(root, version="npy")
    with pytest.raises(ConfigError, match="'npy'"):
        build_index(root, version="np")


def test_what_is_wrong_with_classes_and_depths_is_named(copy_of):
    root = copy_of("virtualkitti")
    index = build_index(root, version="depth")
    encoding = root / "vkitti_1.3.1_scenegt/0001_clone_scenegt_rgb_encoding.txt"
    whole = encoding.read_text()
    encoding.write_text("\n".join(line for line in whole.splitlines() if not line.startswith("Road")))
    with pytest.raises(DataError, match=encoding.name):
        load_frame(index, 0, MERGE)
    encoding.write_text(whole.replace("Road ", "Street "))
    with pytest.raises(DataError, match=r"'Street.*'"):
        load_frame(index, 0, MERGE)
    encoding.unlink()
    with pytest.raises(MissingDataError, match=encoding.name):
        build_index(root, version="depth")
    Image.new("RGB", (248, 76)).save(root / str(index.frames.sweep[0]))
    with pytest.raises(DataError, match="RGB, not 16 bits"):
        read_sweep(index, 0)


def test_a_cloud_of_another_form_is_named(copy_of):
    root = copy_of("virtualkitti")
    index = build_index(root)
    path = root / str(index.frames.sweep[0])
    np.save(path, np.zeros((5, 4)))
    assert "shape [5, 4]" in check_files(index)[0].reason
    with pytest.raises(DataError, match=r"\[5, 4\] .*\[points, 7\]"):
        load_frame(index, 0, MERGE)
