"""Samples styles of synthetic streets from ``streets.yaml``: random ones, and those of the cities and their districts.

``random_style`` draws very different looks; the tiny diffusion pipeline is trained on them alone. ``city_style`` draws
the two cities on which everything else is trained and evaluated, and a third that only the benchmark uses. Each style
has the number of its seed stream: a ``World`` seeds its geometry with (stream, seed), so worlds of random styles and of
different cities never share random numbers.
"""

import colorsys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import ConfigError, nearest
from .sources import read_table
from .styles import (
    Colour,
    Hour,
    ImagingStyle,
    LayoutStyle,
    LightStyle,
    MaterialStyle,
    Range,
    Style,
    TrafficStyle,
    VegetationStyle,
    Weather,
)

__all__ = ["city_style", "draw_light", "in_district", "random_style"]

_NOISE: dict[Hour, float] = {"night": 0.022, "unlit night": 0.1}
_EXTINCTION = {
    "clear": (0.0005, 0.004),
    "fog": (0.018, 0.055),
    "dense fog": (0.08, 0.16),
    "rain": (0.006, 0.02),
    "snow": (0.01, 0.025),
}
_SNOW_LIGHT = 1.3  # factor of ambient light by snow on the ground


def random_style(rng: np.random.Generator, *, day_only: bool = False) -> Style:
    """Draws a style from all looks, or with ``day_only`` from those of clear days, in the stream of training worlds."""
    return Style(
        **_drawn("random", rng),
        light=_random_light(rng, day_only),
        imaging=ImagingStyle(
            field_of_view=rng.uniform(55.0, 90.0),
            camera_height=rng.uniform(1.2, 2.2),
            camera_pitch=rng.uniform(-2.0, 7.0),
            white_balance=_triple(1 + rng.normal(0, 0.07, 3)),
            gamma=rng.uniform(0.75, 1.3),
            blur=rng.uniform(0.0, 0.9),
            noise=rng.uniform(0.0, 0.03),
        ),
    )


def city_style(location: str, *, hour: Hour = "day", weather: Weather = "clear", rng: np.random.Generator) -> Style:
    """Draws a style of one of the evaluation cities, at an ``hour`` and in a ``weather``.

    Raises:
        ConfigError: ``location`` is not a city.
    """
    cities = {name: city for name, city in read_table("streets")["cities"].items() if name != "random"}
    if location not in cities:
        raise ConfigError(f"there is no synthetic city '{location}': {nearest(location, cities)}")
    return Style(
        **_drawn(location, rng),
        light=draw_light(rng, hour, weather),
        imaging=ImagingStyle(
            field_of_view=70.0,
            camera_height=1.5,
            camera_pitch=0.5,
            white_balance=cities[location]["white_balance"],
            gamma=rng.uniform(0.8, 0.88) + (0.14 if hour == "night" else 0.0),
            blur=rng.uniform(*((1.0, 2.0) if hour == "unlit night" else (0.2, 0.45))),
            noise=_NOISE.get(hour, 0.008),
        ),
    )


def in_district(style: Style, location: str, rng: np.random.Generator) -> Style:
    """Draws what the streets of a district, such as ``boston-seaport``, change in the ``style`` of their city."""
    for change in read_table("streets")["districts"].get(location, ()):
        if "chance" in change and rng.random() >= change["chance"]:
            continue
        parts = [name for name in _PARTS if name in change]
        style = replace(style, **{name: replace(getattr(style, name), **_sampled(rng, change[name])) for name in parts})
    return style


def draw_light(rng: np.random.Generator, time_of_day: Hour, weather: Weather) -> LightStyle:
    """Draws sun, sky, lamps and air of a time of day in some weather."""
    hour = read_table("streets")["hours"][time_of_day]
    strength = rng.uniform(*hour["sun"])
    ambient = rng.uniform(*hour["ambient"])
    zenith, horizon = np.array(_hsv(rng, *hour["zenith"])), np.array(_hsv(rng, *hour["horizon"]))
    grey = rng.uniform(*hour["grey"])
    if weather != "clear":
        strength *= 0.22
        zenith, horizon = 0.35 * zenith + 0.65 * grey, 0.2 * horizon + 0.8 * grey
    if weather == "snow":
        ambient *= _SNOW_LIGHT
    return LightStyle(
        time_of_day=time_of_day,
        weather=weather,
        sun_azimuth=rng.uniform(0.0, 2 * np.pi),
        sun_elevation=rng.uniform(*hour["elevation"]),
        sun=_triple(strength * np.array(hour["sun_tint"])),
        ambient=_triple(ambient * np.array(hour["ambient_tint"])),
        zenith=_triple(zenith),
        horizon=_triple(horizon),
        clouds=rng.uniform(0.0, hour["clouds"]),
        extinction=rng.uniform(*_EXTINCTION[weather]),
        air=_triple(np.clip(grey * np.array([1, 1, 1.03]) * (1 + rng.normal(0, 0.02, 3)), 0, 1)),
        headlights=rng.uniform(*hour["headlights"]) if "headlights" in hour else 0.0,
        lamps=rng.uniform(*hour["lamps"]) if "lamps" in hour else 0.0,
        lit_windows=rng.uniform(*hour["lit_windows"]),
    )


def _random_light(rng: np.random.Generator, day_only: bool) -> LightStyle:
    hours: tuple[Hour, ...] = ("day", "overcast", "dusk", "night")
    weathers: tuple[Weather, ...] = ("clear", "fog", "rain")
    hour = hours[int(rng.choice(4, p=[0.45, 0.2, 0.12, 0.23]))]
    weather = weathers[int(rng.choice(3, p=[0.66, 0.2, 0.14]))]
    return draw_light(rng, "day", "clear") if day_only else draw_light(rng, hour, weather)


_PARTS = {"layout": LayoutStyle, "materials": MaterialStyle, "vegetation": VegetationStyle, "traffic": TrafficStyle}


def _drawn(city: str, rng: np.random.Generator) -> dict[str, Any]:
    """Draws the stream, the layout, the materials, the vegetation and the traffic of a city."""
    table = read_table("streets")["cities"][city]
    return {"stream": table["stream"], **{part: kind(**_sampled(rng, table[part])) for part, kind in _PARTS.items()}}


def _sampled(rng: np.random.Generator, specs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _sample(rng, spec) for name, spec in specs.items()}


def _sample(rng: np.random.Generator, spec: Any) -> Any:
    """Draws a value as ``streets.yaml`` describes it; a tuple gives a tuple of values."""
    match spec:
        case {"between": limits}:
            return rng.uniform(*limits)
        case {"near": colour}:
            near = np.array(colour) * (1 + rng.normal(0, spec.get("spread", 0.05), 3))
            return _triple(np.clip(near, 0, 1))
        case {"hsv": ranges}:
            return _hsv(rng, *ranges)
        case {"either": (first, second), "chance": share}:
            return _sample(rng, first if rng.random() < share else second)
        case {"chance": share}:
            return bool(rng.random() < share)
        case {"one_of": choices, "weights": weights}:
            return int(rng.choice(choices, p=weights))
        case tuple():
            return tuple(_sample(rng, each) for each in spec)
    return spec


def _hsv(rng: np.random.Generator, hue: Range, saturation: Range, value: Range) -> Colour:
    """Draws a colour from ranges of hue (turns), saturation and value."""
    return colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value))


def _triple(values: np.ndarray) -> Colour:
    return float(values[0]), float(values[1]), float(values[2])
