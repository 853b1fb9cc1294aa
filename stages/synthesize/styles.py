"""The parameters of a synthetic street's look: layout, materials, vegetation, traffic, light and imaging."""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Colour",
    "Hour",
    "ImagingStyle",
    "LayoutStyle",
    "LightStyle",
    "MaterialStyle",
    "Range",
    "Style",
    "TrafficStyle",
    "VegetationStyle",
    "Weather",
]

Colour = tuple[float, float, float]
"""Linear red, green and blue in [0, 1]."""

Hour = Literal["day", "overcast", "dusk", "night", "unlit night"]

Weather = Literal["clear", "fog", "dense fog", "rain", "snow"]

Range = tuple[float, float]
"""Smallest and largest value of a quantity drawn per object."""


@dataclass(frozen=True)
class LayoutStyle:
    """Lengths of the street in metres; shares in [0, 1]."""

    traffic_side: Literal["right", "left"]
    lanes: int  # per direction
    lane_width: float
    parking: bool
    verge_width: float  # strip of grass between kerb and sidewalk
    sidewalk_width: float
    kerb_height: float
    setback: Range  # sidewalk to facade
    building_height: Range
    building_length: Range
    building_gap: float  # share of plots left open
    pitched_roofs: float
    second_row: float  # share of plots with a taller building behind
    bend_amplitude: float
    bend_length: float
    crossing_spacing: Range
    lamp_spacing: float

    @property
    def half_road(self) -> float:
        """Metres from the centre line to the kerb."""
        return self.lanes * self.lane_width + (2.4 if self.parking else 0.4)


@dataclass(frozen=True)
class MaterialStyle:
    """Colours and the strength of their texture."""

    road: Colour
    road_contrast: float
    sidewalk: Colour
    sidewalk_contrast: float
    tile: float  # metres
    terrain: Colour
    terrain_contrast: float
    marking: Colour
    centre_line: Colour
    marked: bool
    facade_hue: float
    facade_hue_spread: float
    facade_saturation: Range
    facade_value: Range
    facade_contrast: float
    brick: float  # share of facades with courses of brick
    window_pitch: Range  # metres between windows, across
    storey: float  # metres
    window_fill: Range  # share of the pitch and of the storey that is glass
    window: Colour
    roof: Colour


@dataclass(frozen=True)
class VegetationStyle:
    """Kind, number and colour of plants."""

    trees: float  # per 10 m of each side
    conifers: float  # share of the trees
    palms: float  # share of the trees
    hedges: float  # share of open plots and fronts with a hedge
    bushes: float  # per 10 m of each side
    crown: Range  # radius in metres
    trunk: Range  # height in metres
    hue: float
    saturation: float
    value: float
    contrast: float


@dataclass(frozen=True)
class TrafficStyle:
    """Vehicles and people on the street."""

    vehicle_mix: tuple[tuple[str, float], ...]  # kind and weight, see ``shapes.VEHICLE_KINDS``
    parked: float  # share of occupied parking spots
    moving: float  # vehicles per 100 m of each lane
    speed: Range  # metres per second
    pedestrians: float  # per 100 m of each side
    children: float
    works: float  # construction sites per 100 m
    paint_saturation: float


@dataclass(frozen=True)
class LightStyle:
    """Sun, sky, lamps and air."""

    time_of_day: Hour
    weather: Weather
    sun_azimuth: float  # radians from east, anticlockwise
    sun_elevation: float  # radians
    sun: Colour  # strength times colour
    ambient: Colour
    zenith: Colour
    horizon: Colour
    clouds: float
    extinction: float  # of the air, 1 / metre
    air: Colour
    headlights: float
    lamps: float
    lit_windows: float


@dataclass(frozen=True)
class ImagingStyle:
    """Camera imaging, and a default mounting."""

    field_of_view: float  # degrees, horizontal
    camera_height: float
    camera_pitch: float  # degrees, positive looks down
    white_balance: Colour
    gamma: float
    blur: float  # standard deviation in pixels
    noise: float  # standard deviation in [0, 1]


@dataclass(frozen=True)
class Style:
    """One look of a street; with another seed it is another street of the same city and hour."""

    stream: int
    layout: LayoutStyle
    materials: MaterialStyle
    vegetation: VegetationStyle
    traffic: TrafficStyle
    light: LightStyle
    imaging: ImagingStyle
