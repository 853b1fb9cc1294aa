"""Random parameters shared by random streets and cities: numbers, colours, and the light of an hour and weather."""

import colorsys
from dataclasses import dataclass

import numpy as np

from .styles import Colour, Hour, LightStyle, Range, Weather

__all__ = ["draw", "draw_hsv", "draw_light", "draw_near", "triple"]


def draw(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between ``low`` and ``high``."""
    return float(rng.uniform(low, high))


def triple(values: np.ndarray | tuple[float, float, float]) -> Colour:
    """Return three numbers as a colour."""
    return float(values[0]), float(values[1]), float(values[2])


def draw_hsv(rng: np.random.Generator, hue: Range, saturation: Range, value: Range) -> Colour:
    """Draw a colour from ranges of hue (turns), saturation and value."""
    return colorsys.hsv_to_rgb(draw(rng, *hue) % 1.0, draw(rng, *saturation), draw(rng, *value))


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


_HOURS = {
    "day": _Hour(
        elevation=(0.5, 1.15),
        sun=(0.55, 1.0),
        sun_tint=(1.05, 1.0, 0.9),
        ambient=(0.42, 0.62),
        ambient_tint=(0.95, 1.0, 1.08),
        zenith=((0.52, 0.64), (0.3, 0.72), (0.65, 0.95)),
        horizon=((0.5, 0.62), (0.02, 0.28), (0.82, 0.98)),
        grey=(0.62, 0.88),
        lit_windows=(0.0, 0.0),
        clouds=0.5,
    ),
    "overcast": _Hour(
        elevation=(1.1, 1.2),
        sun=(0.08, 0.1),
        sun_tint=(1.0, 1.0, 1.0),
        ambient=(0.6, 0.88),
        ambient_tint=(1.0, 1.0, 1.0),
        zenith=((0.55, 0.65), (0.0, 0.1), (0.6, 0.82)),
        horizon=((0.55, 0.65), (0.0, 0.08), (0.72, 0.92)),
        grey=(0.58, 0.82),
        lit_windows=(0.0, 0.0),
        clouds=0.15,
    ),
    "dusk": _Hour(
        elevation=(0.15, 0.4),
        sun=(0.3, 0.6),
        sun_tint=(1.3, 0.85, 0.5),
        ambient=(0.28, 0.45),
        ambient_tint=(1.05, 0.9, 1.0),
        zenith=((0.58, 0.75), (0.2, 0.6), (0.3, 0.6)),
        horizon=((0.02, 0.12), (0.3, 0.75), (0.6, 0.95)),
        grey=(0.38, 0.58),
        lit_windows=(0.0, 0.2),
        clouds=0.5,
    ),
    "night": _Hour(
        elevation=(0.9, 1.1),
        sun=(0.02, 0.03),
        sun_tint=(0.8, 0.9, 1.2),
        ambient=(0.1, 0.2),
        ambient_tint=(0.78, 0.87, 1.2),
        zenith=((0.58, 0.72), (0.2, 0.8), (0.02, 0.09)),
        horizon=((0.05, 0.7), (0.1, 0.55), (0.06, 0.2)),
        grey=(0.07, 0.17),
        lit_windows=(0.12, 0.55),
        clouds=0.5,
        headlights=(0.5, 1.1),
        lamps=(0.35, 1.0),
    ),
    "unlit night": _Hour(
        elevation=(0.9, 1.1),
        sun=(0.0, 0.01),
        sun_tint=(0.8, 0.9, 1.2),
        ambient=(0.004, 0.03),
        ambient_tint=(0.78, 0.87, 1.2),
        zenith=((0.58, 0.72), (0.2, 0.8), (0.01, 0.03)),
        horizon=((0.05, 0.7), (0.1, 0.55), (0.015, 0.06)),
        grey=(0.02, 0.05),
        lit_windows=(0.02, 0.15),
        clouds=0.5,
        headlights=(0.25, 0.7),
    ),
}
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
    hour = _HOURS[time_of_day]
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
