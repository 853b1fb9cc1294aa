"""Views of an image: the picture itself and variants of it, what they are called, and where they lie in a source.

A feature source with V views an image holds view ``v`` of image ``i`` in row ``i * V + v``. The key of that row is the
image's own for the picture itself, and ``KEY#VIEW`` for a variant.
"""

from collections.abc import Iterable, Sequence

__all__ = ["HFLIP", "IDENTITY", "split_row", "view_key", "view_keys"]

IDENTITY = "identity"
HFLIP = "hflip"  #: left and right exchanged


def view_key(key: str, view: str) -> str:
    """The key of one view of the image ``key``."""
    return key if view == IDENTITY else f"{key}#{view}"


def view_keys(keys: Iterable[str], views: Sequence[str]) -> list[str]:
    """The keys of a source's rows."""
    return [view_key(key, view) for key in keys for view in views]


def split_row(row: int, views: Sequence[str]) -> tuple[int, str]:
    """The image and the view that lie in ``row``."""
    image, view = divmod(row, len(views))
    return image, views[view]
