"""The classes of the synthetic city in the terms of other data sets: a lookup table from its raw labels to theirs."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from ..datasets.raw_classes import RAW_NAMES
from . import classes

__all__ = ["raw_ids"]

#: City class -> name in SemanticKITTI, SemanticSTF and SynLiDAR where they agree, else in that order.
_KITTI: Mapping[int, str | tuple[str, str, str]] = {
    classes.NOISE: ("outlier", "invalid", "unlabeled"),
    classes.ADULT: ("person", "person", "male"),
    classes.CHILD: ("person", "person", "kid"),
    classes.CONSTRUCTION_WORKER: ("moving-person", "person", "female"),
    classes.BARRIER: "fence",
    classes.CONE: ("other-object", "unlabeled", "traffic-cone"),
    classes.BICYCLE: "bicycle",
    classes.BUS: ("bus", "other-vehicle", "bus"),
    classes.CAR: "car",
    classes.CONSTRUCTION_VEHICLE: "other-vehicle",
    classes.MOTORCYCLE: "motorcycle",
    classes.TRAILER: "other-vehicle",
    classes.TRUCK: "truck",
    classes.DRIVEABLE: "road",
    classes.SIDEWALK: "sidewalk",
    classes.TERRAIN: "terrain",
    classes.MANMADE: "building",
    classes.VEGETATION: "vegetation",
}
_KITTI_LIKE = ("semantickitti", "semanticstf", "synlidar")


def raw_ids(dataset: str) -> Int64[np.ndarray, "city"]:
    """``raw_ids(dataset)[city label]`` is the raw id that ``dataset`` would give the same thing."""
    ids = {name: number for number, name in sorted(RAW_NAMES[dataset].items(), reverse=True)}
    table = np.zeros(max(_KITTI) + 1, np.int64)
    for label, names in _KITTI.items():
        table[label] = ids[names if isinstance(names, str) else names[_KITTI_LIKE.index(dataset)]]
    return table
