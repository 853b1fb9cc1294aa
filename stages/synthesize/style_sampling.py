"""Samples styles of synthetic streets: random ones, and those of the cities.

``random_style`` draws very different looks; the tiny diffusion pipeline is trained on them alone. ``city_style`` draws
the two cities on which everything else is trained and evaluated, and a third that only the benchmark uses. Each style
has the number of its seed stream: a ``World`` seeds its geometry with (stream, seed), so worlds of random styles and of
different cities never share random numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import ConfigError, nearest
from . import cities, old_town
from .draws import draw, draw_hsv, draw_light, triple
from .styles import (
    Colour,
    Hour,
    ImagingStyle,
    LayoutStyle,
    LightStyle,
    MaterialStyle,
    Style,
    TrafficStyle,
    VegetationStyle,
    Weather,
)

__all__ = ["city_style", "random_style"]


@dataclass(frozen=True, kw_only=True)
class _City:
    """Samplers of the styles of a city."""

    stream: int
    layout: Callable[[np.random.Generator], LayoutStyle]
    materials: Callable[[np.random.Generator], MaterialStyle]
    vegetation: Callable[[np.random.Generator], VegetationStyle]
    traffic: Callable[[np.random.Generator], TrafficStyle]
    white_balance: Colour


_RANDOM_STREAM = 1
_CITIES = {
    "boston": _City(
        stream=2,
        layout=cities.boston_layout,
        materials=cities.boston_materials,
        vegetation=cities.boston_vegetation,
        traffic=cities.boston_traffic,
        white_balance=(1.0, 1.0, 1.03),
    ),
    "singapore": _City(
        stream=3,
        layout=cities.singapore_layout,
        materials=cities.singapore_materials,
        vegetation=cities.singapore_vegetation,
        traffic=cities.singapore_traffic,
        white_balance=(1.04, 1.0, 0.95),
    ),
    "siena": _City(
        stream=4,
        layout=old_town.siena_layout,
        materials=old_town.siena_materials,
        vegetation=old_town.siena_vegetation,
        traffic=old_town.siena_traffic,
        white_balance=(0.97, 1.0, 1.04),
    ),
}
_NOISE: dict[Hour, float] = {"night": 0.022, "unlit night": 0.1}
_VEHICLES = ("car", "truck", "bus", "trailer", "construction", "motorcycle", "bicycle")


def random_style(rng: np.random.Generator, *, day_only: bool = False) -> Style:
    """Draw a style from all looks, or with ``day_only`` from those of clear days, in the stream of training worlds."""
    return Style(
        name="random",
        stream=_RANDOM_STREAM,
        layout=_random_layout(rng),
        materials=_random_materials(rng),
        vegetation=_random_vegetation(rng),
        traffic=_random_traffic(rng),
        light=_random_light(rng, day_only),
        imaging=ImagingStyle(
            field_of_view=draw(rng, 55.0, 90.0),
            camera_height=draw(rng, 1.2, 2.2),
            camera_pitch=draw(rng, -2.0, 7.0),
            white_balance=triple(1 + rng.normal(0, 0.07, 3)),
            gamma=draw(rng, 0.75, 1.3),
            blur=draw(rng, 0.0, 0.9),
            noise=draw(rng, 0.0, 0.03),
        ),
    )


def city_style(location: str, *, hour: Hour = "day", weather: Weather = "clear", rng: np.random.Generator) -> Style:
    """Draw a style of one of the evaluation cities, at an ``hour`` and in a ``weather``.

    Raises:
        ConfigError: ``location`` is not a city.
    """
    if location not in _CITIES:
        raise ConfigError(f"there is no synthetic city '{location}': {nearest(location, _CITIES)}")
    city = _CITIES[location]
    return Style(
        name=f"{location}-{hour}{'' if weather == 'clear' else f'-{weather}'}",
        stream=city.stream,
        layout=city.layout(rng),
        materials=city.materials(rng),
        vegetation=city.vegetation(rng),
        traffic=city.traffic(rng),
        light=draw_light(rng, hour, weather),
        imaging=ImagingStyle(
            field_of_view=70.0,
            camera_height=1.5,
            camera_pitch=0.5,
            white_balance=city.white_balance,
            gamma=draw(rng, 0.8, 0.88) + (0.14 if hour == "night" else 0.0),
            blur=draw(rng, *((1.0, 2.0) if hour == "unlit night" else (0.2, 0.45))),
            noise=_NOISE.get(hour, 0.008),
        ),
    )


def _random_layout(rng: np.random.Generator) -> LayoutStyle:
    low, high = draw(rng, 3.0, 8.0), draw(rng, 8.0, 28.0)
    return LayoutStyle(
        traffic_side="right" if rng.random() < 0.5 else "left",
        lanes=1 if rng.random() < 0.6 else 2,
        lane_width=draw(rng, 2.9, 4.0),
        parking=bool(rng.random() < 0.65),
        verge_width=draw(rng, 0.8, 3.0) if rng.random() < 0.45 else 0.0,
        sidewalk_width=draw(rng, 1.3, 4.5),
        kerb_height=draw(rng, 0.08, 0.18),
        setback=(draw(rng, 0.2, 2.0), draw(rng, 2.0, 9.0)),
        building_height=(low, high),
        building_length=(draw(rng, 7.0, 12.0), draw(rng, 12.0, 28.0)),
        building_gap=draw(rng, 0.05, 0.65),
        pitched_roofs=draw(rng, 0.0, 0.8),
        second_row=draw(rng, 0.0, 0.6),
        bend_amplitude=draw(rng, 0.0, 6.0),
        bend_length=draw(rng, 45.0, 110.0),
        crossing_spacing=(draw(rng, 50.0, 80.0), draw(rng, 90.0, 160.0)),
        lamp_spacing=draw(rng, 18.0, 40.0),
    )


def _random_materials(rng: np.random.Generator) -> MaterialStyle:
    return MaterialStyle(
        road=draw_hsv(rng, (0.0, 1.0), (0.0, 0.22), (0.18, 0.55)),
        road_contrast=draw(rng, 0.02, 0.2),
        sidewalk=draw_hsv(rng, (0.0, 1.0), (0.0, 0.35), (0.35, 0.85)),
        sidewalk_contrast=draw(rng, 0.02, 0.18),
        tile=draw(rng, 0.5, 2.2),
        terrain=draw_hsv(rng, (0.07, 0.42), (0.1, 0.7), (0.25, 0.7)),
        terrain_contrast=draw(rng, 0.08, 0.32),
        marking=draw_hsv(rng, (0.08, 0.2), (0.0, 0.3), (0.65, 1.0)),
        centre_line=draw_hsv(rng, (0.1, 0.16), (0.0, 0.9), (0.65, 1.0)),
        marked=bool(rng.random() < 0.8),
        facade_hue=draw(rng, 0.0, 1.0),
        facade_hue_spread=draw(rng, 0.02, 0.3),
        facade_saturation=(draw(rng, 0.0, 0.2), draw(rng, 0.2, 0.65)),
        facade_value=(draw(rng, 0.2, 0.5), draw(rng, 0.5, 0.95)),
        facade_contrast=draw(rng, 0.02, 0.16),
        brick=draw(rng, 0.0, 0.8),
        window_pitch=(draw(rng, 1.3, 2.2), draw(rng, 2.2, 4.0)),
        storey=draw(rng, 2.7, 3.8),
        window_fill=(draw(rng, 0.25, 0.45), draw(rng, 0.45, 0.8)),
        window=draw_hsv(rng, (0.45, 0.7), (0.0, 0.5), (0.1, 0.55)),
        roof=draw_hsv(rng, (0.0, 1.0), (0.0, 0.6), (0.15, 0.55)),
    )


def _random_vegetation(rng: np.random.Generator) -> VegetationStyle:
    conifers = draw(rng, 0.0, 0.6)
    return VegetationStyle(
        trees=draw(rng, 0.1, 1.1),
        conifers=conifers,
        palms=draw(rng, 0.0, 0.35) if rng.random() < 0.4 else 0.0,
        hedges=draw(rng, 0.0, 0.6),
        bushes=draw(rng, 0.0, 1.2),
        crown=(draw(rng, 1.0, 1.6), draw(rng, 1.8, 3.2)),
        trunk=(draw(rng, 1.6, 2.4), draw(rng, 2.4, 4.2)),
        hue=draw(rng, 0.06, 0.4),
        saturation=draw(rng, 0.2, 0.75),
        value=draw(rng, 0.2, 0.62),
        contrast=draw(rng, 0.15, 0.38),
    )


def _random_traffic(rng: np.random.Generator) -> TrafficStyle:
    weights = (draw(rng, 2.0, 8.0), *(draw(rng, 0.05, 1.5) for _ in _VEHICLES[1:]))
    return TrafficStyle(
        vehicle_mix=tuple(zip(_VEHICLES, weights, strict=True)),
        parked=draw(rng, 0.0, 0.8),
        moving=draw(rng, 1.0, 6.0),
        speed=(4.5, 9.0),
        pedestrians=draw(rng, 1.0, 9.0),
        children=draw(rng, 0.0, 0.3),
        works=draw(rng, 0.0, 0.9),
        paint_saturation=draw(rng, 0.2, 1.0),
    )


def _random_light(rng: np.random.Generator, day_only: bool) -> LightStyle:
    hours: tuple[Hour, ...] = ("day", "overcast", "dusk", "night")
    weathers: tuple[Weather, ...] = ("clear", "fog", "rain")
    hour = hours[int(rng.choice(4, p=[0.45, 0.2, 0.12, 0.23]))]
    weather = weathers[int(rng.choice(3, p=[0.66, 0.2, 0.14]))]
    return draw_light(rng, "day", "clear") if day_only else draw_light(rng, hour, weather)
