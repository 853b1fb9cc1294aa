"""Random parameters shared by random streets and cities: numbers, colours, and the light of an hour and weather."""

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from ...files import parse_yaml
from .styles import Colour, Hour, LightStyle, Range, Weather

__all__ = ["draw", "draw_hsv", "draw_light", "draw_near", "sample", "street_table", "triple"]


def draw(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between ``low`` and ``high``."""
    return float(rng.uniform(low, high))


def triple(values: np.ndarray | tuple[float, float, float]) -> Colour:
    """Return three numbers as a colour."""
    return float(values[0]), float(values[1]), float(values[2])


def draw_hsv(rng: np.random.Generator, hue: Range, saturation: Range, value: Range) -> Colour:
    """Draw a colour from ranges of hue (turns), saturation and value."""
    return colorsys.hsv_to_rgb(draw(rng, *hue) % 1.0, draw(rng, *saturation), draw(rng, *value))


def sample(rng: np.random.Generator, spec: Any) -> Any:
    """Draw a value as ``streets.yaml`` describes it; a tuple gives a tuple of values."""
    match spec:
        case {"between": (low, high)}:
            return draw(rng, low, high)
        case {"near": colour}:
            return draw_near(rng, colour, spec.get("spread", 0.05))
        case {"hsv": ranges}:
            return draw_hsv(rng, *ranges)
        case {"either": (first, second), "chance": share}:
            return sample(rng, first if rng.random() < share else second)
        case {"chance": share}:
            return bool(rng.random() < share)
        case {"one_of": choices, "weights": weights}:
            return int(rng.choice(choices, p=weights))
        case tuple():
            return tuple(sample(rng, each) for each in spec)
    return spec


@cache
def street_table() -> Mapping[str, Any]:
    """Returns ``streets.yaml``: ``cities`` and ``hours`` by name."""
    text = resources.files(__package__).joinpath("streets.yaml").read_text(encoding="utf-8")
    table: Mapping[str, Any] = _with_tuples(parse_yaml(text))
    return table


def _with_tuples(value: Any) -> Any:
    """Returns ``value`` with tuples in place of lists."""
    if isinstance(value, dict):
        return {key: _with_tuples(each) for key, each in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def draw_near(rng: np.random.Generator, colour: Colour, spread: float = 0.05) -> Colour:
    """Draw a colour close to a given one."""
    return triple(np.clip(np.array(colour) * (1 + rng.normal(0, spread, 3)), 0, 1))


@dataclass(frozen=True)
class _Hour:
    """Ranges of the light of a time of day."""

    elevation: Range  # of the sun, radians
    sun: Range  # strength
    sun_tint: Colour
    ambient: Range
    ambient_tint: Colour
    zenith: tuple[Range, Range, Range]  # hue, saturation, value
    horizon: tuple[Range, Range, Range]
    grey: Range  # value of fog and of clouds that cover the sky
    lit_windows: Range
    clouds: float
    headlights: Range = (0.0, 0.0)
    lamps: Range = (0.0, 0.0)


_EXTINCTION = {
    "clear": (0.0005, 0.004),
    "fog": (0.018, 0.055),
    "dense fog": (0.08, 0.16),
    "rain": (0.006, 0.02),
    "snow": (0.01, 0.025),
}
_SNOW_LIGHT = 1.3  # factor of ambient light by snow on the ground


def draw_light(
    rng: np.random.Generator,
    time_of_day: Hour,
    weather: Weather,
) -> LightStyle:
    """Draw sun, sky, lamps and air of a time of day in some weather."""
    hour = _Hour(**street_table()["hours"][time_of_day])
    strength = draw(rng, *hour.sun)
    ambient = draw(rng, *hour.ambient)
    zenith, horizon = np.array(draw_hsv(rng, *hour.zenith)), np.array(draw_hsv(rng, *hour.horizon))
    grey = draw(rng, *hour.grey)
    if weather != "clear":
        strength *= 0.22
        zenith, horizon = 0.35 * zenith + 0.65 * grey, 0.2 * horizon + 0.8 * grey
    if weather == "snow":
        ambient *= _SNOW_LIGHT
    return LightStyle(
        time_of_day=time_of_day,
        weather=weather,
        sun_azimuth=draw(rng, 0.0, 2 * np.pi),
        sun_elevation=draw(rng, *hour.elevation),
        sun=triple(strength * np.array(hour.sun_tint)),
        ambient=triple(ambient * np.array(hour.ambient_tint)),
        zenith=triple(zenith),
        horizon=triple(horizon),
        clouds=draw(rng, 0.0, hour.clouds),
        extinction=draw(rng, *_EXTINCTION[weather]),
        air=triple(np.clip(grey * np.array([1, 1, 1.03]) * (1 + rng.normal(0, 0.02, 3)), 0, 1)),
        headlights=draw(rng, *hour.headlights) if any(hour.headlights) else 0.0,
        lamps=draw(rng, *hour.lamps) if any(hour.lamps) else 0.0,
        lit_windows=draw(rng, *hour.lit_windows),
    )
