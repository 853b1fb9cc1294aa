"""Districts of Boston in the benchmark: streets that differ from those of their city."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from .draws import draw, draw_near
from .styles import Style

__all__ = ["DISTRICTS", "boston_outskirts", "boston_suburbs"]


def boston_suburbs(style: Style, rng: np.random.Generator) -> Style:
    """Give half of Boston's streets a grass verge, and half of them sidewalks of red brick."""
    layout, materials = style.layout, style.materials
    if rng.random() < 0.5:
        layout = replace(layout, verge_width=draw(rng, 0.8, 2.0))
    if rng.random() < 0.5:
        brick = draw_near(rng, (0.55, 0.38, 0.32))
        materials = replace(materials, sidewalk=brick, sidewalk_contrast=0.14, tile=0.4)
    return replace(style, layout=layout, materials=materials)


def boston_outskirts(style: Style, rng: np.random.Generator) -> Style:
    """Turn a street of Boston into one of its outskirts: low houses of painted boards behind gardens, more trees."""
    layout = replace(
        style.layout,
        lanes=1,
        verge_width=draw(rng, 0.8, 2.0),
        sidewalk_width=draw(rng, 1.5, 2.2),
        setback=(2.0, 7.0),
        building_height=(5.0, draw(rng, 8.0, 11.0)),
        building_length=(8.0, 14.0),
        building_gap=draw(rng, 0.25, 0.4),
        pitched_roofs=0.85,
        second_row=0.3,
    )
    materials = replace(
        style.materials,
        facade_hue=draw(rng, 0.08, 0.6),
        facade_hue_spread=0.12,
        facade_saturation=(0.03, 0.3),
        facade_value=(0.5, 0.9),
        brick=0.1,
        window_fill=(0.32, 0.46),
    )
    vegetation = replace(style.vegetation, trees=draw(rng, 0.7, 1.1), hedges=0.5, bushes=0.9, crown=(1.6, 2.8))
    return replace(style, layout=layout, materials=materials, vegetation=vegetation)


DISTRICTS: Mapping[str, Callable[[Style, np.random.Generator], Style]] = {
    "boston-seaport": boston_suburbs,
    "boston-backbay": boston_suburbs,
    "boston-southend": boston_suburbs,
    "boston-dorchester": boston_outskirts,
}
"""Location -> change of its streets relative to their city, in the benchmark."""
