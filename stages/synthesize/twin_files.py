"""Files of a twin: whole or not there at all, in folders that are made as they are needed."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt
from PIL import Image

from ...files import write_bytes

__all__ = ["write_file", "write_png"]


def write_file(path: Path, content: bytes) -> None:
    """Write ``content``, after the folder of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)


def write_png(path: Path, pixels: UInt[np.ndarray, "height width *channels"]) -> None:
    """Write an image of 8 bits in three channels, or of 16 bits in one."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    write_file(path, content.getvalue())
