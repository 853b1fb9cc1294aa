"""Which view of each image a sample sees: a drawn one in training, the image as it is in evaluation."""

from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from ...cache.views import HFLIP, IDENTITY
from ...errors import RunError
from ..datasets.frames import Frame
from .source import FeatureSource

__all__ = ["draw_views", "identity_views"]

#: The largest float32 below one: a point stays strictly inside its image when it is mirrored.
_BELOW_ONE = np.float32(1 - 2**-24)


def draw_views(
    frame: Frame, source: FeatureSource | None, rng: np.random.Generator
) -> tuple[Frame, Int64[np.ndarray, "views"]]:
    """Draw one of the source's views for each image of ``frame``.

    Returns the frame with its projections moved to where the views show the points, and the number of each view.
    """
    views = source.views if source else (IDENTITY,)
    drawn = rng.integers(len(views), size=len(frame.image_rows))
    mirrored = np.array([view == HFLIP for view in views])[drawn][frame.projection_view]
    if not mirrored.any():
        return frame, drawn
    uv = frame.projection_uv.copy()
    uv[mirrored, 0] = np.minimum(1 - uv[mirrored, 0], _BELOW_ONE)
    return replace(frame, projection_uv=uv), drawn


def identity_views(frame: Frame, source: FeatureSource | None) -> Int64[np.ndarray, "views"]:
    """The number of the view that shows an image as it is, once for each image of ``frame``.

    Raises:
        RunError: the source has no such view.
    """
    views = list(source.views) if source else [IDENTITY]
    if IDENTITY not in views:
        raise RunError(
            f"Evaluation reads the view '{IDENTITY}' of an image, and these features hold {', '.join(views)};"
            " extract them with extract.views that include it"
        )
    return np.full(len(frame.image_rows), views.index(IDENTITY), np.int64)
