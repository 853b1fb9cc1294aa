"""Drawing the knobs that random streets and cities share: numbers, colours, and the light of an hour and a weather."""

import colorsys

import numpy as np

from .knobs import Colour, LightStyle, Range

__all__ = ["draw", "draw_hsv", "draw_light", "draw_near", "triple"]


def draw(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def triple(values: np.ndarray | tuple[float, float, float]) -> Colour:
    return float(values[0]), float(values[1]), float(values[2])


def draw_hsv(rng: np.random.Generator, hue: Range, saturation: Range, value: Range) -> Colour:
    """Draw a colour from ranges of hue (turns), saturation and value."""
    return colorsys.hsv_to_rgb(draw(rng, *hue) % 1, draw(rng, *saturation), draw(rng, *value))


def draw_near(rng: np.random.Generator, colour: Colour, spread: float = 0.05) -> Colour:
    """Draw a colour close to a given one."""
    return triple(np.clip(np.array(colour) * (1 + rng.normal(0, spread, 3)), 0, 1))


def draw_light(rng: np.random.Generator, hour: str, weather: str) -> LightStyle:
    """Draw sun, sky, lamps and air of a time of day (see ``LightStyle``) in some weather."""
    low_sun = {"day": (0.5, 1.15), "overcast": (1.1, 1.2), "dusk": (0.15, 0.4), "night": (0.9, 1.1)}[hour]
    strength = draw(
        rng, *{"day": (0.55, 1.0), "overcast": (0.08, 0.1), "dusk": (0.3, 0.6), "night": (0.02, 0.03)}[hour]
    )
    if weather != "clear":
        strength *= 0.22
    tint = {"day": (1.05, 1.0, 0.9), "overcast": (1, 1, 1), "dusk": (1.3, 0.85, 0.5), "night": (0.8, 0.9, 1.2)}[hour]
    ambient = draw(
        rng, *{"day": (0.42, 0.62), "overcast": (0.6, 0.88), "dusk": (0.28, 0.45), "night": (0.1, 0.2)}[hour]
    )
    cast = {"day": (0.95, 1.0, 1.08), "overcast": (1, 1, 1), "dusk": (1.05, 0.9, 1.0), "night": (0.78, 0.87, 1.2)}[hour]
    zenith, horizon = _sky(rng, hour)
    grey = draw(
        rng, *{"day": (0.62, 0.88), "overcast": (0.58, 0.82), "dusk": (0.38, 0.58), "night": (0.07, 0.17)}[hour]
    )
    if weather != "clear":
        zenith, horizon = ((0.35 * np.array(zenith) + 0.65 * grey), (0.2 * np.array(horizon) + 0.8 * grey))
    lit = {"night": (0.12, 0.55), "dusk": (0.0, 0.2)}.get(hour, (0.0, 0.0))
    return LightStyle(
        time_of_day=hour,  # type: ignore[arg-type]
        weather=weather,  # type: ignore[arg-type]
        sun_azimuth=draw(rng, 0, 2 * np.pi),
        sun_elevation=draw(rng, *low_sun),
        sun=triple(strength * np.array(tint)),
        ambient=triple(ambient * np.array(cast)),
        zenith=triple(zenith),
        horizon=triple(horizon),
        clouds=draw(rng, 0, 0.15 if hour == "overcast" else 0.5),
        extinction=draw(rng, *{"clear": (0.0005, 0.004), "fog": (0.018, 0.055), "rain": (0.006, 0.02)}[weather]),
        air=triple(np.clip(grey * np.array([1, 1, 1.03]) * (1 + rng.normal(0, 0.02, 3)), 0, 1)),
        headlights=draw(rng, 0.5, 1.1) if hour == "night" else 0.0,
        lamps=draw(rng, 0.35, 1.0) if hour == "night" else 0.0,
        lit_windows=draw(rng, *lit),
    )


def _sky(rng: np.random.Generator, hour: str) -> tuple[Colour, Colour]:
    """Draw the colours of the sky overhead and at the horizon."""
    overhead, below = {
        "day": (((0.52, 0.64), (0.3, 0.72), (0.65, 0.95)), ((0.5, 0.62), (0.02, 0.28), (0.82, 0.98))),
        "overcast": (((0.55, 0.65), (0, 0.1), (0.6, 0.82)), ((0.55, 0.65), (0, 0.08), (0.72, 0.92))),
        "dusk": (((0.58, 0.75), (0.2, 0.6), (0.3, 0.6)), ((0.02, 0.12), (0.3, 0.75), (0.6, 0.95))),
        "night": (((0.58, 0.72), (0.2, 0.8), (0.02, 0.09)), ((0.05, 0.7), (0.1, 0.55), (0.06, 0.2))),
    }[hour]
    return draw_hsv(rng, *overhead), draw_hsv(rng, *below)
