"""The nuScenes classes of the synthetic city, by the ids of raw lidarseg labels.

The ids are those of ``category.json`` of the official data set (and of the 32 classes of the official devkit).
"""

__all__ = [
    "ADULT",
    "BARRIER",
    "BICYCLE",
    "BUS",
    "CAR",
    "CATEGORY_NAMES",
    "CHILD",
    "CONE",
    "CONSTRUCTION_VEHICLE",
    "CONSTRUCTION_WORKER",
    "DRIVEABLE",
    "MANMADE",
    "MOTORCYCLE",
    "NOISE",
    "SIDEWALK",
    "SKY",
    "TERRAIN",
    "TRAILER",
    "TRUCK",
    "VEGETATION",
]

NOISE = 0
SKY = 0
ADULT = 2
CHILD = 3
CONSTRUCTION_WORKER = 4
BARRIER = 9
CONE = 12
BICYCLE = 14
BUS = 16
CAR = 17
CONSTRUCTION_VEHICLE = 18
MOTORCYCLE = 21
TRAILER = 22
TRUCK = 23
DRIVEABLE = 24
SIDEWALK = 26
TERRAIN = 27
MANMADE = 28
VEGETATION = 30

CATEGORY_NAMES: dict[int, str] = {
    NOISE: "noise",
    ADULT: "human.pedestrian.adult",
    CHILD: "human.pedestrian.child",
    CONSTRUCTION_WORKER: "human.pedestrian.construction_worker",
    BARRIER: "movable_object.barrier",
    CONE: "movable_object.trafficcone",
    BICYCLE: "vehicle.bicycle",
    BUS: "vehicle.bus.rigid",
    CAR: "vehicle.car",
    CONSTRUCTION_VEHICLE: "vehicle.construction",
    MOTORCYCLE: "vehicle.motorcycle",
    TRAILER: "vehicle.trailer",
    TRUCK: "vehicle.truck",
    DRIVEABLE: "flat.driveable_surface",
    SIDEWALK: "flat.sidewalk",
    TERRAIN: "flat.terrain",
    MANMADE: "static.manmade",
    VEGETATION: "static.vegetation",
}
"""The official category name of each id used here."""
