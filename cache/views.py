"""Names, keys and row numbers of the views of an image: the picture itself and its variants.

A feature source with V views an image holds view ``v`` of image ``i`` in row ``i * V + v``. The key of that row is the
image's own for the picture itself, and ``KEY#VIEW`` for a variant.
"""

from collections.abc import Iterable, Sequence

__all__ = ["HFLIP", "IDENTITY", "split_row", "view_key", "view_keys"]

IDENTITY = "identity"
HFLIP = "hflip"  #: mirrored left to right


def view_key(key: str, view: str) -> str:
    """Returns the key of one view of the image ``key``."""
    return key if view == IDENTITY else f"{key}#{view}"


def view_keys(keys: Iterable[str], views: Sequence[str]) -> list[str]:
    """Returns the keys of all rows of a source."""
    return [view_key(key, view) for key in keys for view in views]


def split_row(row: int, views: Sequence[str]) -> tuple[int, str]:
    """Returns the image index and the view of ``row``."""
    image, view = divmod(row, len(views))
    return image, views[view]
