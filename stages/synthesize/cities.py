"""The street styles of the two cities of the synthetic data set.

They differ, as the real cities do, in everything but the classes: side of the road, widths, distance and height of
buildings, materials and colours, plants, and traffic. Their sensors differ too, see ``lidar_models``.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from .draws import draw, draw_near
from .styles import LayoutStyle, MaterialStyle, Style, TrafficStyle, VegetationStyle

__all__ = [
    "DISTRICTS",
    "boston_layout",
    "boston_materials",
    "boston_outskirts",
    "boston_suburbs",
    "boston_traffic",
    "boston_vegetation",
    "singapore_layout",
    "singapore_materials",
    "singapore_traffic",
    "singapore_vegetation",
]


def boston_layout(rng: np.random.Generator) -> LayoutStyle:
    """Draw a street of Boston: right-hand traffic, parked kerbs, close brick houses, no grass before the sidewalk."""
    return LayoutStyle(
        traffic_side="right",
        lanes=int(rng.choice([1, 2], p=[0.6, 0.4])),
        lane_width=draw(rng, 3.2, 3.6),
        parking=True,
        verge_width=0.0,
        sidewalk_width=draw(rng, 2.2, 3.2),
        kerb_height=0.15,
        setback=(0.3, 3.5),
        building_height=(7.0, draw(rng, 15.0, 26.0)),
        building_length=(8.0, 20.0),
        building_gap=draw(rng, 0.15, 0.3),
        pitched_roofs=0.2,
        second_row=0.5,
        bend_amplitude=draw(rng, 0.0, 3.0),
        bend_length=draw(rng, 60.0, 100.0),
        crossing_spacing=(70.0, 120.0),
        lamp_spacing=draw(rng, 24.0, 30.0),
    )


def boston_materials(rng: np.random.Generator) -> MaterialStyle:
    """Draw Boston's surfaces: dark asphalt, yellow centre lines, grey concrete walks, red and brown brick."""
    return MaterialStyle(
        road=draw_near(rng, (0.30, 0.30, 0.32)),
        road_contrast=0.11,
        sidewalk=draw_near(rng, (0.60, 0.58, 0.55)),
        sidewalk_contrast=0.07,
        tile=1.5,
        terrain=draw_near(rng, (0.36, 0.42, 0.22), 0.07),
        terrain_contrast=0.22,
        marking=(0.9, 0.9, 0.88),
        centre_line=(0.88, 0.68, 0.12),
        marked=True,
        facade_hue=draw(rng, 0.01, 0.05),
        facade_hue_spread=0.025,
        facade_saturation=(0.12, 0.58),
        facade_value=(0.34, 0.66),
        facade_contrast=0.08,
        brick=0.7,
        window_pitch=(1.6, 2.4),
        storey=3.1,
        window_fill=(0.42, 0.58),
        window=(0.24, 0.29, 0.35),
        roof=draw_near(rng, (0.28, 0.27, 0.28)),
    )


def boston_vegetation(rng: np.random.Generator) -> VegetationStyle:
    """Draw Boston's plants: maples in a row, some spruces, few hedges."""
    return VegetationStyle(
        trees=draw(rng, 0.35, 0.7),
        conifers=0.22,
        palms=0.0,
        hedges=0.25,
        bushes=0.3,
        crown=(1.3, 2.3),
        trunk=(2.1, 3.2),
        hue=draw(rng, 0.2, 0.28),
        saturation=draw(rng, 0.45, 0.65),
        value=draw(rng, 0.3, 0.42),
        contrast=0.28,
    )


def boston_traffic(rng: np.random.Generator) -> TrafficStyle:
    """Draw Boston's traffic: mostly cars, some delivery trucks, trailers and construction sites."""
    mix = (("car", 8.0), ("truck", 1.2), ("bus", 0.6), ("trailer", 0.35), ("motorcycle", 0.35), ("bicycle", 0.5))
    return TrafficStyle(
        vehicle_mix=(*mix, ("construction", 0.25)),
        parked=draw(rng, 0.5, 0.75),
        moving=draw(rng, 2.0, 4.0),
        speed=(5.0, 8.0),
        pedestrians=draw(rng, 4.0, 8.0),
        children=0.12,
        works=0.5,
        paint_saturation=0.7,
    )


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


def singapore_layout(rng: np.random.Generator) -> LayoutStyle:
    """Draw a street of Singapore: left-hand traffic, wider road, grass verges, blocks far behind gardens."""
    return LayoutStyle(
        traffic_side="left",
        lanes=2,
        lane_width=draw(rng, 3.3, 3.7),
        parking=bool(rng.random() < 0.35),
        verge_width=draw(rng, 1.4, 2.6),
        sidewalk_width=draw(rng, 1.5, 2.2),
        kerb_height=0.12,
        setback=(3.0, 10.0),
        building_height=(9.0, draw(rng, 24.0, 38.0)),
        building_length=(14.0, 34.0),
        building_gap=draw(rng, 0.3, 0.5),
        pitched_roofs=0.1,
        second_row=0.6,
        bend_amplitude=draw(rng, 2.0, 6.0),
        bend_length=draw(rng, 50.0, 90.0),
        crossing_spacing=(90.0, 150.0),
        lamp_spacing=draw(rng, 28.0, 36.0),
    )


def singapore_materials(rng: np.random.Generator) -> MaterialStyle:
    """Draw Singapore's surfaces: light worn asphalt, white lines, reddish walks, pale painted blocks."""
    return MaterialStyle(
        road=draw_near(rng, (0.46, 0.43, 0.40)),
        road_contrast=0.06,
        sidewalk=draw_near(rng, (0.62, 0.47, 0.41)),
        sidewalk_contrast=0.12,
        tile=0.6,
        terrain=draw_near(rng, (0.30, 0.50, 0.16), 0.07),
        terrain_contrast=0.18,
        marking=(0.95, 0.95, 0.92),
        centre_line=(0.95, 0.95, 0.92),
        marked=True,
        facade_hue=draw(rng, 0.08, 0.16),
        facade_hue_spread=0.1,
        facade_saturation=(0.03, 0.25),
        facade_value=(0.72, 0.97),
        facade_contrast=0.04,
        brick=0.05,
        window_pitch=(2.4, 3.6),
        storey=2.9,
        window_fill=(0.5, 0.75),
        window=(0.2, 0.27, 0.33),
        roof=draw_near(rng, (0.62, 0.36, 0.26)),
    )


def singapore_vegetation(rng: np.random.Generator) -> VegetationStyle:
    """Draw Singapore's plants: wide rain trees, palms, hedges and many bushes."""
    return VegetationStyle(
        trees=draw(rng, 0.7, 1.1),
        conifers=0.0,
        palms=0.3,
        hedges=0.65,
        bushes=1.1,
        crown=(1.7, 3.1),
        trunk=(2.6, 4.2),
        hue=draw(rng, 0.27, 0.34),
        saturation=draw(rng, 0.55, 0.75),
        value=draw(rng, 0.26, 0.4),
        contrast=0.3,
    )


def singapore_traffic(rng: np.random.Generator) -> TrafficStyle:
    """Draw Singapore's traffic: cars, many motorcycles and buses."""
    mix = (("car", 6.0), ("truck", 1.0), ("bus", 1.3), ("trailer", 0.2), ("motorcycle", 1.8), ("bicycle", 0.8))
    return TrafficStyle(
        vehicle_mix=(*mix, ("construction", 0.2)),
        parked=draw(rng, 0.3, 0.55),
        moving=draw(rng, 2.5, 4.5),
        speed=(6.0, 9.0),
        pedestrians=draw(rng, 3.0, 7.0),
        children=0.1,
        works=0.45,
        paint_saturation=0.9,
    )
