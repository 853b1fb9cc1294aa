"""Label merges: the mapping from the raw classes of each data set to the classes of the network.

A merge maps class -> data set -> raw names, as in ``catalogue``; other raw classes are ignored. Predictions of a
class are written under its first raw name.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from .catalogue import FOLDER, NUSCENES_16

__all__ = ["MERGES", "MergeName", "datasets_of"]

#: The merges, and ``folder``: all classes of a user's folder, which any other merge matches by name.
MergeName = Literal[
    "nuscenes-16",
    "nuscenes-6",
    "a2d2-nuscenes-8",
    "a2d2-semantickitti-10",
    "virtualkitti-semantickitti-6",
    "semantickitti-19",
    "folder",
]

_A2D2_BIKE = (
    *(f"Bicycle {number}" for number in (1, 2, 3, 4)),
    *(f"Small vehicles {number}" for number in (1, 2, 3)),
)
_A2D2_CAR = ("Car 1", "Car 2", "Car 3", "Car 4", "Ego car")
_A2D2_PERSON = ("Pedestrian 1", "Pedestrian 2", "Pedestrian 3")
_A2D2_ROAD = (
    "RD normal street",
    "Zebra crossing",
    "Solid line",
    "RD restricted area",
    "Slow drive area",
    "Drivable cobblestone",
    "Dashed line",
    "Painted driv. instr.",
)
_A2D2_TRUCK = ("Truck 1", "Truck 2", "Truck 3")
_A2D2_OBJECTS = (
    "Poles",
    *(f"Traffic {kind} {number}" for kind in ("signal", "sign") for number in (1, 2, 3)),
    "Sidebars",
    "Speed bumper",
    "Irrelevant signs",
    "Road blocks",
    "Obstacles / trash",
    "Animals",
    "Signal corpus",
    "Electronic traffic",
    "Traffic guide obj.",
    "Grid structure",
)
_KITTI_BIKE = (
    "bicycle",
    "motorcycle",
    "bicyclist",
    "motorcyclist",
    "moving-bicyclist",
    "moving-motorcyclist",
)
_KITTI_OBJECTS = ("fence", "pole", "traffic-sign", "other-object")
_KITTI_NATURE = ("vegetation", "trunk", "terrain")


def _nineteen(name: str, kitti: Sequence[str] = (), synlidar: Sequence[str] = ()) -> dict[str, Sequence[str]]:
    """A class of SemanticKITTI's learning map: what joins it there, and its SynLiDAR classes where named otherwise."""
    return {"semantickitti": (name, *kitti), "semanticstf": (name,), "synlidar": synlidar or (name,)}


#: Merge -> class -> data set -> raw names. Sources: xMUDA's data classes, the learning maps of semantic-kitti-api and
#: PointDR.
MERGES: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]] = {
    "nuscenes-16": {name: {"nuscenes": (name,)} for name in NUSCENES_16},
    "nuscenes-6": {
        "vehicle": {
            "nuscenes": ("car", "bicycle", "bus", "construction_vehicle", "motorcycle", "trailer", "truck"),
        },
        "driveable_surface": {"nuscenes": ("driveable_surface",)},
        "sidewalk": {"nuscenes": ("sidewalk",)},
        "terrain": {"nuscenes": ("terrain",)},
        "manmade": {"nuscenes": ("manmade",)},
        "vegetation": {"nuscenes": ("vegetation",)},
    },
    "a2d2-nuscenes-8": {
        "car": {"a2d2": _A2D2_CAR, "nuscenes": ("car",)},
        "truck": {"a2d2": _A2D2_TRUCK, "nuscenes": ("truck",)},
        "bike": {"a2d2": _A2D2_BIKE, "nuscenes": ("bicycle", "motorcycle")},
        "road": {"a2d2": _A2D2_ROAD, "nuscenes": ("driveable_surface",)},
        "sidewalk": {"a2d2": ("Sidewalk", "Curbstone"), "nuscenes": ("sidewalk",)},
        "nature": {"a2d2": ("Nature object",), "nuscenes": ("vegetation", "terrain")},
        "building": {"a2d2": ("Buildings",), "nuscenes": ("manmade",)},
        "person": {"a2d2": _A2D2_PERSON, "nuscenes": ("pedestrian",)},
    },
    "a2d2-semantickitti-10": {
        "car": {"a2d2": _A2D2_CAR, "semantickitti": ("car", "moving-car")},
        "truck": {"a2d2": _A2D2_TRUCK, "semantickitti": ("truck", "moving-truck")},
        "bike": {"a2d2": _A2D2_BIKE, "semantickitti": _KITTI_BIKE},
        "person": {"a2d2": _A2D2_PERSON, "semantickitti": ("person", "moving-person")},
        "road": {"a2d2": _A2D2_ROAD, "semantickitti": ("road", "lane-marking")},
        "parking": {"a2d2": ("Parking area",), "semantickitti": ("parking",)},
        "sidewalk": {"a2d2": ("Sidewalk", "Curbstone"), "semantickitti": ("sidewalk",)},
        "building": {"a2d2": ("Buildings",), "semantickitti": ("building",)},
        "nature": {"a2d2": ("Nature object",), "semantickitti": _KITTI_NATURE},
        "other-objects": {"a2d2": _A2D2_OBJECTS, "semantickitti": _KITTI_OBJECTS},
    },
    "virtualkitti-semantickitti-6": {
        "vegetation_terrain": {"virtualkitti": ("Terrain", "Tree", "Vegetation"), "semantickitti": _KITTI_NATURE},
        "building": {"virtualkitti": ("Building",), "semantickitti": ("building",)},
        "road": {"virtualkitti": ("Road",), "semantickitti": ("road", "lane-marking")},
        "object": {"virtualkitti": ("TrafficSign", "TrafficLight", "Pole", "Misc"), "semantickitti": _KITTI_OBJECTS},
        "truck": {"virtualkitti": ("Truck",), "semantickitti": ("truck", "moving-truck")},
        "car": {"virtualkitti": ("Car",), "semantickitti": ("car", "moving-car")},
    },
    "semantickitti-19": {
        "car": _nineteen("car", ("moving-car",)),
        "bicycle": _nineteen("bicycle"),
        "motorcycle": _nineteen("motorcycle"),
        "truck": _nineteen("truck", ("moving-truck",), ("truck", "pick-up")),
        "other-vehicle": _nineteen(
            "other-vehicle",
            ("bus", "on-rails", "moving-bus", "moving-on-rails", "moving-other-vehicle"),
            ("other-vehicle", "bus"),
        ),
        "person": _nineteen("person", ("moving-person",), ("female", "male", "kid", "group")),
        "bicyclist": _nineteen("bicyclist", ("moving-bicyclist",)),
        "motorcyclist": _nineteen("motorcyclist", ("moving-motorcyclist",)),
        "road": _nineteen("road", ("lane-marking",)),
        "parking": _nineteen("parking"),
        "sidewalk": _nineteen("sidewalk"),
        "other-ground": _nineteen("other-ground"),
        "building": _nineteen("building"),
        "fence": _nineteen("fence"),
        "vegetation": _nineteen("vegetation"),
        "trunk": _nineteen("trunk"),
        "terrain": _nineteen("terrain"),
        "pole": _nineteen("pole"),
        "traffic-sign": _nineteen("traffic-sign"),
    },
}


def datasets_of(merge: str) -> tuple[str, ...]:
    """Returns the data sets that ``merge`` covers."""
    return (FOLDER,) if merge == FOLDER else tuple(next(iter(MERGES[merge].values())))
