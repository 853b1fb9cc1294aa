"""Styles: random ones differ widely, cities are themselves, and no world of one is a world of the other."""

from dataclasses import asdict

import numpy as np
import pytest
from xd3d.errors import ConfigError
from xd3d.stages.synthesize.style_sampling import city_style, random_style
from xd3d.stages.synthesize.world import World


def test_random_styles_show_every_hour_weather_and_side():
    styles = [random_style(np.random.default_rng(seed)) for seed in range(120)]
    assert {style.light.time_of_day for style in styles} == {"day", "overcast", "dusk", "night"}
    assert {style.light.weather for style in styles} == {"clear", "fog", "rain"}
    assert {style.layout.traffic_side for style in styles} == {"left", "right"}
    assert len({style.materials.road for style in styles}) == 120


def test_day_only_styles_are_clear_days_that_differ_otherwise():
    styles = [random_style(np.random.default_rng(seed), day_only=True) for seed in range(40)]
    assert {(style.light.time_of_day, style.light.weather) for style in styles} == {("day", "clear")}
    assert len({style.materials.facade_hue for style in styles}) == 40


def test_equal_generators_draw_equal_styles():
    assert random_style(np.random.default_rng(5)) == random_style(np.random.default_rng(5))
    first, second = (city_style("boston", hour="night", rng=np.random.default_rng(5)) for _ in range(2))
    assert first == second


def test_all_worlds_of_training_and_of_both_cities_draw_from_streams_of_their_own():
    rng = np.random.default_rng(0)
    random, boston, singapore = random_style(rng), city_style("boston", rng=rng), city_style("singapore", rng=rng)
    assert len({random.stream, boston.stream, singapore.stream}) == 3
    phases = {
        World(style, seed, length=20.0).ground.phase for style in (random, boston, singapore) for seed in range(2)
    }
    assert len(phases) == 6


def test_cities_differ_in_side_layout_materials_and_traffic():
    boston, singapore = (city_style(name, rng=np.random.default_rng(1)) for name in ("boston", "singapore"))
    assert (boston.layout.traffic_side, singapore.layout.traffic_side) == ("right", "left")
    for group in ("layout", "materials", "vegetation", "traffic"):
        ours, theirs = asdict(getattr(boston, group)), asdict(getattr(singapore, group))
        assert sum(ours[key] != theirs[key] for key in ours) >= len(ours) / 2


def test_night_and_fog_change_the_light_only():
    def day(**hour):
        return city_style("singapore", rng=np.random.default_rng(2), **hour)

    assert day(hour="night").layout == day().layout
    assert day(hour="night").light.lamps > 0 == day().light.lamps
    assert day(weather="fog").light.extinction > 4 * day().light.extinction
    both = day(hour="night", weather="fog").light
    assert (both.time_of_day, both.weather) == ("night", "fog")


def test_unknown_city_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'boston'"):
        city_style("bostn", rng=np.random.default_rng(0))
