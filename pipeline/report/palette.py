"""One colour a class, the same in every picture of the report."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

__all__ = ["RIGHT", "UNLABELLED", "WRONG", "class_colours"]

RIGHT = (0.62, 0.78, 0.66)
WRONG = (0.84, 0.15, 0.16)
UNLABELLED = (0.75, 0.75, 0.75)

FAMILIAR = {
    "vehicle": (0.12, 0.35, 0.85),
    "driveable_surface": (0.50, 0.35, 0.60),
    "sidewalk": (0.90, 0.45, 0.85),
    "terrain": (0.72, 0.62, 0.30),
    "manmade": (0.40, 0.40, 0.42),
    "vegetation": (0.25, 0.60, 0.20),
}


def class_colours(classes: Sequence[str]) -> Float[np.ndarray, "classes 3"]:
    """RGB in [0, 1] for each class; unknown names take well-spread hues in order."""
    from matplotlib import colormaps

    spread = colormaps["tab20"]
    return np.array([FAMILIAR.get(name, spread(number % spread.N)[:3]) for number, name in enumerate(classes)])
