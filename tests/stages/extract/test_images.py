"""Every kind of image file becomes the right pixels or a reason."""

import numpy as np
import pytest
import torch
from PIL import Image
from xd3d.errors import DataError
from xd3d.stages.extract.images import load_image, pad_to_multiple


@pytest.fixture
def gradient():
    rows, columns = np.mgrid[0:60, 0:80]
    return np.stack([rows * 4, columns * 3, 255 - rows * 2], axis=2).astype(np.uint8)


def test_an_image_of_the_wanted_size_is_kept_as_it_is(gradient, tmp_path):
    Image.fromarray(gradient).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png", image_size=(60, 80), stored_size=(80, 60))
    assert np.array_equal(loaded, gradient.transpose(2, 0, 1))


def test_shrinking_averages_the_pixels_it_drops(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png", image_size=(8, 8))
    assert np.abs(loaded[:, :, 1:-1].astype(int) - 100).max() <= 2


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_other_eight_bit_modes_become_rgb(gradient, tmp_path, mode):
    name = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(gradient).convert(mode).save(name)
    assert load_image(name, image_size=(60, 80)).shape == (3, 60, 80)


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    ramp = np.linspace(0, 65535, 80).astype(np.uint16)[None].repeat(60, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png", image_size=(60, 80))
    np.testing.assert_allclose(loaded[0], ramp / 257, atol=0.6)


def test_orientation_tags_are_ignored(gradient, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "a.png", image_size=(60, 80)), gradient.transpose(2, 0, 1))


def test_scaled_decoding_shrinks_jpegs_as_far_as_the_wanted_size_and_stays_close(gradient, tmp_path, monkeypatch):
    large = Image.fromarray(gradient).resize((640, 480))
    large.save(tmp_path / "a.jpg", quality=95)
    large.save(tmp_path / "a.png")
    decoded = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a: decoded.append(self.size) or resize(self, *a))
    sizes = {(60, 80): (80, 60), (120, 160): (160, 120), (200, 300): (320, 240), (250, 300): (640, 480)}
    for size, expected in sizes.items():
        full = load_image(tmp_path / "a.jpg", image_size=size, stored_size=(640, 480))
        scaled = load_image(tmp_path / "a.jpg", image_size=size, stored_size=(640, 480), decoding="scaled")
        assert decoded[-2:] == [(640, 480), expected]
        assert np.abs(scaled.astype(int) - full).mean() < 2
    load_image(tmp_path / "a.png", image_size=(60, 80), decoding="scaled")
    assert decoded[-1] == (640, 480)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "float", "missing", "folder"])
def test_a_broken_file_gives_a_reason_with_its_name(gradient, tmp_path, kind):
    path = tmp_path / "a.tif"
    if kind == "truncated":
        path = tmp_path / "a.jpg"
        Image.fromarray(gradient).save(path)
        path.write_bytes(path.read_bytes()[:700])
    elif kind == "float":
        Image.fromarray(gradient[..., 0].astype(np.float32)).save(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else b"no image")
    with pytest.raises(DataError, match=rf"{path.name}: .*(missing|decoded)"):
        load_image(path, image_size=(60, 80))


def test_padding_repeats_the_last_row_and_column():
    images = torch.arange(2 * 3 * 5 * 6, dtype=torch.float32).reshape(2, 3, 5, 6)
    padded = pad_to_multiple(images, 4)
    assert padded.shape == (2, 3, 8, 8)
    assert torch.equal(padded[..., :5, :6], images)
    assert (padded[..., 5:, :6] == images[..., 4:, :]).all()
    assert (padded[..., 6:] == padded[..., 5:6]).all()
