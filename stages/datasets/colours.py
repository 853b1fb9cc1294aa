"""Label images: classes by colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from ...errors import DataError, MissingDataError
from .checks import UNDECODABLE

__all__ = ["ColourTable", "read_colours"]


@dataclass(frozen=True, kw_only=True)
class ColourTable:
    """Colours and the numbers that they stand for."""

    packed: Int64[np.ndarray, "colours"]  #: rising
    numbers: Int64[np.ndarray, "colours"]

    @classmethod
    def of(cls, colours: Sequence[tuple[int, ...]], numbers: Sequence[int] | None = None) -> "ColourTable":
        """The table of (red, green, blue) ``colours``; they stand for 0, 1, 2 ... unless ``numbers`` are given."""
        packed = _pack(np.array(colours, np.uint8).reshape(-1, 3))
        order = np.argsort(packed)
        meant = np.arange(len(packed)) if numbers is None else np.array(numbers, np.int64)
        return cls(packed=packed[order], numbers=meant[order])

    def find(self, colours: UInt8[np.ndarray, "pixels 3"]) -> Int64[np.ndarray, "pixels"]:
        """The number of each colour, or -1."""
        packed = _pack(colours)
        place = np.minimum(np.searchsorted(self.packed, packed), len(self.packed) - 1)
        return np.where(self.packed[place] == packed, self.numbers[place], -1)


def read_colours(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The colours of the label image in ``path``.

    Raises:
        MissingDataError: there is no such file.
        DataError: it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise MissingDataError(
            f"The label image {path} is gone since the data set was indexed; put it back, or run 'xd3d prepare' again"
        ) from error
    except UNDECODABLE as error:
        raise DataError(f"The label image {path} cannot be decoded ({error}); copy it again") from error


def _pack(colours: UInt8[np.ndarray, "pixels 3"]) -> Int64[np.ndarray, "pixels"]:
    return colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
