"""Point clouds of VirtualKITTI: the arrays of the vkitti3D tools, or the same points from depth and class images."""

from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, Num
from PIL import Image

from ...errors import DataError
from .catalogue import VIRTUALKITTI
from .checks import UNDECODABLE, Remark, image_fault, missing_since_indexed
from .label_files import ColourTable, read_colours
from .npy_files import load_array
from .sweeps import Sweep, points_fault
from .text_files import read_text

__all__ = [
    "CLASS_FOLDER",
    "cloud_fault",
    "cloud_labels",
    "cloud_of_depth",
    "depth_fault",
    "focal_length",
    "read_classes",
    "read_cloud",
    "read_encoding",
]

_COLUMNS = 7  # x, y, z (metres), red, green, blue, label
_NUMBERS = "fiu"  # kinds of numpy types
_DEPTH_MODE = "I"  # of Pillow: one whole number a pixel, of 16 or 32 bits
_CUTOFF = 100.0  # metres from the camera; beyond is sky
_SKY, _SKY_OF_THE_TOOLS = "Sky", 99
_IGNORED = next(number for number, name in VIRTUALKITTI.items() if name == "Don't care")
#: Folder of the class images and their lists of colours.
CLASS_FOLDER = "vkitti_1.3.1_scenegt"


def read_cloud(path: Path) -> Float64[np.ndarray, "points 7"]:
    """Returns a point cloud of the tools: x forward, y left, z up, red, green, blue, label.

    Raises:
        MissingDataError: the file is missing.
        DataError: it is truncated, or not an array [points, 7] of numbers.
    """
    try:
        cloud = load_array(path)
    except FileNotFoundError as error:
        raise missing_since_indexed("point cloud", path) from error
    except (ValueError, OSError) as error:
        raise DataError(f"The point cloud {path} cannot be read ({error}); make it again with create_npy.py") from error
    if cloud.ndim != 2 or cloud.shape[1] != _COLUMNS or not len(cloud) or cloud.dtype.kind not in _NUMBERS:
        raise DataError(
            f"The point cloud {path} has shape {list(cloud.shape)} of {cloud.dtype}, not [points, 7] of numbers;"
            " make it again with create_npy.py"
        )
    return cloud.astype(np.float64)


def cloud_fault(path: Path) -> str | Remark | None:
    """Returns the fault of the point cloud in ``path``, or a remark on its points that are not usable."""
    if not path.is_file():  # opening a pipe blocks
        return "the point cloud is missing; make it again with create_npy.py"
    try:
        cloud = read_cloud(path)
    except DataError as error:
        return str(error)
    labels = cloud_labels(cloud)
    unknown = labels[~np.isin(labels, list(VIRTUALKITTI))]
    if len(unknown):
        return (
            f"the point cloud has {len(unknown)} labels that are not ids of the data set, such as {unknown[0]}; make it"
            " again with create_npy.py"
        )
    return points_fault(lambda: Sweep.of(cloud[:, :3]))


def cloud_labels(cloud: Num[np.ndarray, "points 7"]) -> Int64[np.ndarray, "points"]:
    """Returns the class of each point; the number that the tools give to sky becomes "Don't care"."""
    with np.errstate(invalid="ignore"):
        labels = cloud[:, 6].astype(np.int64)
    return np.where(labels == _SKY_OF_THE_TOOLS, _IGNORED, labels)


def focal_length(width: int) -> float:
    """Returns the focal length in pixels of images of this width; 725 at the published 1242."""
    return 725.0 * width / 1242


def cloud_of_depth(path: Path) -> Sweep:
    """Returns points of a depth image (16 bits, centimetres) nearer than 100 m, and the centres of their pixels.

    Raises:
        MissingDataError: the file is missing.
        DataError: it cannot be decoded, or does not have 16 bits per pixel.
    """
    try:
        with Image.open(path) as image:
            mode, depth = image.mode, np.asarray(image)
    except FileNotFoundError as error:
        raise missing_since_indexed("depth image", path) from error
    except UNDECODABLE as error:
        raise DataError(f"The depth image {path} cannot be decoded ({error}); copy it again") from error
    if not mode.startswith(_DEPTH_MODE):
        raise DataError(f"The depth image {path} has pixels of type {mode}, not 16 bits; unpack the depth images again")
    metres = depth.astype(np.float64) / 100
    height, width = depth.shape
    focal = focal_length(width)
    rows, columns = np.mgrid[:height, :width].astype(np.float64) + 0.5
    points = np.stack(
        [metres, -(columns - width / 2) / focal * metres, -(rows - height / 2) / focal * metres], axis=-1
    ).reshape(-1, 3)
    near = np.sqrt(np.square(points).sum(axis=1)) < _CUTOFF
    pixels = np.stack([columns.ravel(), rows.ravel()], axis=1)
    return Sweep(points=points[near].astype(np.float32), pixels=pixels[near])


def depth_fault(path: Path, size: tuple[int, int]) -> str | Remark | None:
    """Returns the fault of the depth image in ``path``, expected to have ``size`` pixels, or None."""
    fault = image_fault(path, size)
    if fault:
        return fault
    with Image.open(path) as image:
        mode = image.mode
    if mode.startswith(_DEPTH_MODE):
        return None
    return f"the depth image has pixels of type {mode}, not 16 bits; unpack the depth images again"


def read_classes(path: Path, folder: Path, world: str, sweep: Sweep) -> Int64[np.ndarray, "labels"]:
    """Returns the class of each point of ``sweep`` by the colour of its pixel in the class image of ``world``.

    Raises:
        MissingDataError: the image is missing.
        DataError: it is damaged, of another size than the depth image, or has a colour without a class.
    """
    image, table = read_colours(path), read_encoding(folder, world)
    pixels = sweep.pixels
    if pixels is None or (len(pixels) and (pixels.max(axis=0) > image.shape[1::-1]).any()):
        raise DataError(f"The class image {path} is smaller than its depth image; unpack both again")
    columns, rows = pixels.astype(np.int64).T
    colours = image[rows, columns]
    classes = table.find(colours)
    if (classes < 0).any():
        unknown = colours[classes < 0][0].tolist()
        raise DataError(
            f"The class image {path} has the colour {unknown}, which {_encoding(folder, world).name} does not list;"
            f" unpack {CLASS_FOLDER} again"
        )
    return classes


def _encoding(folder: Path, world: str) -> Path:
    return folder / f"{world}_clone_scenegt_rgb_encoding.txt"


def read_encoding(folder: Path, world: str) -> ColourTable:
    """Returns colours and classes of a world, from lines such as ``Car:12 200 20 128``; sky counts as don't care.

    Raises:
        MissingDataError: the list of colours is missing in ``folder``.
        DataError: it is not text, or a line is not a class.
    """
    path, remedy = _encoding(folder, world), f"unpack {CLASS_FOLDER} again"
    numbers = {name: number for number, name in VIRTUALKITTI.items()}
    numbers[_SKY] = _IGNORED
    colours: list[tuple[int, ...]] = []
    classes: list[int] = []
    for line in read_text(path, "list of colours", remedy).splitlines()[1:]:
        name, *colour = line.split() or [""]
        name = name.partition(":")[0]
        whole = len(colour) == 3 and all(word.isdecimal() and int(word) < 256 for word in colour)
        if name and (not whole or name not in numbers):
            raise DataError(f"The line '{line[:60]}' of {path} is not a class with red, green and blue; {remedy}")
        if name:
            colours.append(tuple(map(int, colour)))
            classes.append(numbers[name])
    if not colours:
        raise DataError(f"{path} has no colour; {remedy}")
    return ColourTable.of(colours, classes)
