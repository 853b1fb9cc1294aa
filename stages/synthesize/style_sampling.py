"""Samples styles of synthetic streets: random ones, and those of the cities.

``random_style`` draws very different looks; the tiny diffusion pipeline is trained on them alone. ``city_style`` draws
the two cities on which everything else is trained and evaluated, and a third that only the benchmark uses. Each style
has the number of its seed stream: a ``World`` seeds its geometry with (stream, seed), so worlds of random styles and of
different cities never share random numbers.
"""

from typing import Any

import numpy as np

from ...errors import ConfigError, nearest
from .draws import draw, draw_light, sample, street_table, triple
from .styles import (
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


_NOISE: dict[Hour, float] = {"night": 0.022, "unlit night": 0.1}


def random_style(rng: np.random.Generator, *, day_only: bool = False) -> Style:
    """Draw a style from all looks, or with ``day_only`` from those of clear days, in the stream of training worlds."""
    return Style(
        name="random",
        **_drawn("random", rng),
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
    cities = {name: city for name, city in street_table()["cities"].items() if name != "random"}
    if location not in cities:
        raise ConfigError(f"there is no synthetic city '{location}': {nearest(location, cities)}")
    return Style(
        name=f"{location}-{hour}{'' if weather == 'clear' else f'-{weather}'}",
        **_drawn(location, rng),
        light=draw_light(rng, hour, weather),
        imaging=ImagingStyle(
            field_of_view=70.0,
            camera_height=1.5,
            camera_pitch=0.5,
            white_balance=cities[location]["white_balance"],
            gamma=draw(rng, 0.8, 0.88) + (0.14 if hour == "night" else 0.0),
            blur=draw(rng, *((1.0, 2.0) if hour == "unlit night" else (0.2, 0.45))),
            noise=_NOISE.get(hour, 0.008),
        ),
    )


def _drawn(city: str, rng: np.random.Generator) -> dict[str, Any]:
    """Draws the stream, the layout, the materials, the vegetation and the traffic of a city of ``streets.yaml``."""
    table = street_table()["cities"][city]
    kinds = {"layout": LayoutStyle, "materials": MaterialStyle, "vegetation": VegetationStyle, "traffic": TrafficStyle}
    parts = {
        part: kind(**{name: sample(rng, spec) for name, spec in table[part].items()}) for part, kind in kinds.items()
    }
    return {"stream": table["stream"], **parts}


def _random_light(rng: np.random.Generator, day_only: bool) -> LightStyle:
    hours: tuple[Hour, ...] = ("day", "overcast", "dusk", "night")
    weathers: tuple[Weather, ...] = ("clear", "fog", "rain")
    hour = hours[int(rng.choice(4, p=[0.45, 0.2, 0.12, 0.23]))]
    weather = weathers[int(rng.choice(3, p=[0.66, 0.2, 0.14]))]
    return draw_light(rng, "day", "clear") if day_only else draw_light(rng, hour, weather)
