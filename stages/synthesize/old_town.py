"""The street style of the third city, Siena: an old town with narrow winding streets, used only by the benchmark.

It differs from both cities of ``cities`` in everything: one lane per direction without markings on pale cobbles, walks
of stone as wide as a person, houses of warm plaster under steep tiled roofs next to the sidewalk, courtyards full of
plants, cypresses, many people and motorcycles.
"""

import numpy as np

from .draws import draw, draw_near
from .styles import LayoutStyle, MaterialStyle, TrafficStyle, VegetationStyle

__all__ = ["siena_layout", "siena_materials", "siena_traffic", "siena_vegetation"]


def siena_layout(rng: np.random.Generator) -> LayoutStyle:
    """Draw a street of Siena: right-hand traffic, narrow, winding, many side streets, houses next to the sidewalk."""
    return LayoutStyle(
        traffic_side="right",
        lanes=1,
        lane_width=draw(rng, 2.7, 3.1),
        parking=bool(rng.random() < 0.4),
        verge_width=0.0,
        sidewalk_width=draw(rng, 1.1, 1.8),
        kerb_height=0.07,
        setback=(0.0, 1.6),
        building_height=(7.0, draw(rng, 11.0, 15.0)),
        building_length=(6.0, 13.0),
        building_gap=draw(rng, 0.18, 0.3),
        pitched_roofs=0.95,
        second_row=0.5,
        bend_amplitude=draw(rng, 3.0, 6.0),
        bend_length=draw(rng, 32.0, 50.0),
        crossing_spacing=(40.0, 75.0),
        lamp_spacing=draw(rng, 18.0, 24.0),
    )


def siena_materials(rng: np.random.Generator) -> MaterialStyle:
    """Draw Siena's surfaces: cobbles, pale stone, plaster from ochre to rose, small windows, red tiles."""
    return MaterialStyle(
        road=draw_near(rng, (0.50, 0.46, 0.41)),
        road_contrast=0.2,
        sidewalk=draw_near(rng, (0.70, 0.66, 0.57)),
        sidewalk_contrast=0.1,
        tile=0.8,
        terrain=draw_near(rng, (0.46, 0.42, 0.24), 0.07),
        terrain_contrast=0.26,
        marking=(0.9, 0.9, 0.88),
        centre_line=(0.9, 0.9, 0.88),
        marked=False,
        facade_hue=draw(rng, 0.05, 0.1),
        facade_hue_spread=0.03,
        facade_saturation=(0.3, 0.62),
        facade_value=(0.62, 0.9),
        facade_contrast=0.1,
        brick=0.04,
        window_pitch=(2.2, 3.2),
        storey=3.5,
        window_fill=(0.28, 0.4),
        window=(0.18, 0.26, 0.2),
        roof=draw_near(rng, (0.58, 0.3, 0.2)),
    )


def siena_vegetation(rng: np.random.Generator) -> VegetationStyle:
    """Draw Siena's plants: cypresses and small olive-green trees in courtyards, tubs and hedges before the houses."""
    return VegetationStyle(
        trees=draw(rng, 0.1, 0.3),
        conifers=0.45,
        palms=0.0,
        hedges=0.45,
        bushes=1.3,
        crown=(0.9, 1.7),
        trunk=(1.7, 2.6),
        hue=draw(rng, 0.19, 0.25),
        saturation=draw(rng, 0.3, 0.48),
        value=draw(rng, 0.3, 0.42),
        contrast=0.26,
    )


def siena_traffic(rng: np.random.Generator) -> TrafficStyle:
    """Draw Siena's traffic: few and slow cars, many motorcycles, bicycles and people."""
    mix = (("car", 6.0), ("truck", 0.7), ("bus", 0.3), ("trailer", 0.1), ("motorcycle", 2.4), ("bicycle", 1.6))
    return TrafficStyle(
        vehicle_mix=(*mix, ("construction", 0.15)),
        parked=draw(rng, 0.4, 0.7),
        moving=draw(rng, 1.6, 3.0),
        speed=(3.5, 5.5),
        pedestrians=draw(rng, 8.0, 14.0),
        children=0.15,
        works=0.35,
        paint_saturation=0.8,
    )
