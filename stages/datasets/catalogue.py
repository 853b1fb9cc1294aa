"""The data sets: their names, their domains, and their raw classes by the ids or names in their files.

This module imports nothing heavy, so that settings can use the names without loading numpy.
"""

from collections.abc import Mapping
from typing import Literal, get_args

__all__ = [
    "A2D2_COLOURS",
    "DOMAINS",
    "FOLDER",
    "NUSCENES_16",
    "NUSCENES_32",
    "NUSCENES_32_TO_16",
    "RAW_NAMES",
    "SEMANTICKITTI",
    "SEMANTICSTF",
    "SYNLIDAR",
    "VIRTUALKITTI",
    "BenchmarkDomain",
    "DatasetName",
]

#: Each is read by the module of its name.
DatasetName = Literal["nuscenes", "semantickitti", "semanticstf", "synlidar", "a2d2", "virtualkitti", "folder"]
BenchmarkDomain = Literal[
    "streets",
    "streets-city",
    "streets-night",
    "streets-fog",
    "streets-sensor",
    "streets-development",
    "streets-haze",
    "streets-dim",
    "streets-dusk",
    "streets-snow",
    "streets-tilted",
]

#: The data set that defines its own classes.
FOLDER = "folder"

#: Data set -> its domains; ``splits`` defines their frames; one that is only in ``all`` needs no entry there.
DOMAINS: Mapping[str, tuple[str, ...]] = {
    "nuscenes": ("usa", "singapore", "day", "night", "all", *get_args(BenchmarkDomain)),
    "semantickitti": ("all", "official"),
    "semanticstf": ("all", "dense_fog", "light_fog", "rain", "snow"),
    "synlidar": ("all",),
    "a2d2": ("all",),
    "virtualkitti": ("all",),
    "folder": ("all",),
}

#: Names of the raw ids 0 to 31 of nuScenes-lidarseg, as in the ``category`` table of its download.
NUSCENES_32 = (
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
)

#: Fine name -> class of the lidarseg challenge; other fine names are ignored there.
#: Source: ``LidarsegClassMapper`` of the nuScenes devkit.
NUSCENES_32_TO_16: Mapping[str, str] = {
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "flat.driveable_surface": "driveable_surface",
    "flat.other": "other_flat",
    "flat.sidewalk": "sidewalk",
    "flat.terrain": "terrain",
    "static.manmade": "manmade",
    "static.vegetation": "vegetation",
}

#: Classes 1 to 16 of the lidarseg challenge; 0 is ignored. Source: ``LidarsegClassMapper`` of the nuScenes devkit.
NUSCENES_16 = (
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
)

#: Raw id -> name of SemanticKITTI, the lower 16 bits of a label. Source: ``semantic-kitti.yaml`` of semantic-kitti-api.
SEMANTICKITTI: Mapping[int, str] = {
    0: "unlabeled",
    1: "outlier",
    10: "car",
    11: "bicycle",
    13: "bus",
    15: "motorcycle",
    16: "on-rails",
    18: "truck",
    20: "other-vehicle",
    30: "person",
    31: "bicyclist",
    32: "motorcyclist",
    40: "road",
    44: "parking",
    48: "sidewalk",
    49: "other-ground",
    50: "building",
    51: "fence",
    52: "other-structure",
    60: "lane-marking",
    70: "vegetation",
    71: "trunk",
    72: "terrain",
    80: "pole",
    81: "traffic-sign",
    99: "other-object",
    252: "moving-car",
    253: "moving-bicyclist",
    254: "moving-person",
    255: "moving-motorcyclist",
    256: "moving-on-rails",
    257: "moving-bus",
    258: "moving-truck",
    259: "moving-other-vehicle",
}

#: Raw id -> name of SemanticSTF. Source: ``semanticstf.yaml`` of its download.
SEMANTICSTF: Mapping[int, str] = dict(
    enumerate(
        (
            "unlabeled",
            "car",
            "bicycle",
            "motorcycle",
            "truck",
            "other-vehicle",
            "person",
            "bicyclist",
            "motorcyclist",
            "road",
            "parking",
            "sidewalk",
            "other-ground",
            "building",
            "fence",
            "vegetation",
            "trunk",
            "terrain",
            "pole",
            "traffic-sign",
            "invalid",
        )
    )
)

#: Raw id -> name of SynLiDAR. Source: ``annotations.yaml`` of its download.
SYNLIDAR: Mapping[int, str] = dict(
    enumerate(
        (
            "unlabeled",
            "car",
            "pick-up",
            "truck",
            "bus",
            "bicycle",
            "motorcycle",
            "other-vehicle",
            "road",
            "sidewalk",
            "parking",
            "other-ground",
            "female",
            "male",
            "kid",
            "group",
            "bicyclist",
            "motorcyclist",
            "building",
            "other-structure",
            "vegetation",
            "trunk",
            "terrain",
            "traffic-sign",
            "pole",
            "traffic-cone",
            "fence",
            "garbage-can",
            "electric-box",
            "table",
            "chair",
            "bench",
            "other-object",
        )
    )
)

#: Colour in a label image of A2D2 -> class, in the order of ``class_list.json`` of its download.
A2D2_COLOURS: Mapping[str, str] = {
    "#ff0000": "Car 1",
    "#c80000": "Car 2",
    "#960000": "Car 3",
    "#800000": "Car 4",
    "#b65906": "Bicycle 1",
    "#963204": "Bicycle 2",
    "#5a1e01": "Bicycle 3",
    "#5a1e1e": "Bicycle 4",
    "#cc99ff": "Pedestrian 1",
    "#bd499b": "Pedestrian 2",
    "#ef59bf": "Pedestrian 3",
    "#ff8000": "Truck 1",
    "#c88000": "Truck 2",
    "#968000": "Truck 3",
    "#00ff00": "Small vehicles 1",
    "#00c800": "Small vehicles 2",
    "#009600": "Small vehicles 3",
    "#0080ff": "Traffic signal 1",
    "#1e1c9e": "Traffic signal 2",
    "#3c1c64": "Traffic signal 3",
    "#00ffff": "Traffic sign 1",
    "#1edcdc": "Traffic sign 2",
    "#3c9dc7": "Traffic sign 3",
    "#ffff00": "Utility vehicle 1",
    "#ffffc8": "Utility vehicle 2",
    "#e96400": "Sidebars",
    "#6e6e00": "Speed bumper",
    "#808000": "Curbstone",
    "#ffc125": "Solid line",
    "#400040": "Irrelevant signs",
    "#b97a57": "Road blocks",
    "#000064": "Tractor",
    "#8b636c": "Non-drivable street",
    "#d23273": "Zebra crossing",
    "#ff0080": "Obstacles / trash",
    "#fff68f": "Poles",
    "#960096": "RD restricted area",
    "#ccff99": "Animals",
    "#eea2ad": "Grid structure",
    "#212cb1": "Signal corpus",
    "#b432b4": "Drivable cobblestone",
    "#ff46b9": "Electronic traffic",
    "#eee9bf": "Slow drive area",
    "#93fdc2": "Nature object",
    "#9696c8": "Parking area",
    "#b496c8": "Sidewalk",
    "#48d1cc": "Ego car",
    "#c87dd2": "Painted driv. instr.",
    "#9f79ee": "Traffic guide obj.",
    "#8000ff": "Dashed line",
    "#ff00ff": "RD normal street",
    "#87ceff": "Sky",
    "#f1e6ff": "Buildings",
    "#60458f": "Blurred area",
    "#352e52": "Rain dirt",
}

#: Label -> name of VirtualKITTI's point clouds. Source: the read-me of vkitti3D-dataset.
VIRTUALKITTI: Mapping[int, str] = dict(
    enumerate(
        (
            "Terrain",
            "Tree",
            "Vegetation",
            "Building",
            "Road",
            "GuardRail",
            "TrafficSign",
            "TrafficLight",
            "Pole",
            "Misc",
            "Truck",
            "Car",
            "Van",
            "Don't care",
        )
    )
)

#: Data set -> raw id -> name in merges. nuScenes uses the 16 classes of its challenge; in A2D2 unlisted colours
#: have the id after the last one.
RAW_NAMES: Mapping[str, Mapping[int, str]] = {
    "nuscenes": {number: NUSCENES_32_TO_16.get(name, "ignored") for number, name in enumerate(NUSCENES_32)},
    "semantickitti": SEMANTICKITTI,
    "semanticstf": SEMANTICSTF,
    "synlidar": SYNLIDAR,
    "a2d2": dict(enumerate((*A2D2_COLOURS.values(), "unknown colour"))),
    "virtualkitti": VIRTUALKITTI,
}
