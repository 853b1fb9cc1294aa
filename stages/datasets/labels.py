"""Labels: from a data set's raw ids to the classes of a setting, by a lookup table with a name.

nuScenes-lidarseg stores 32 fine ids. The official challenge first maps them to 16 classes (and 0, ignored); a setting
then merges those. A merge is one entry of ``_MERGES``; its lookup table is built from the names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int64, Integer

from ...errors import ConfigError, DataError, nearest

__all__ = ["IGNORE", "NUSCENES_32", "NUSCENES_32_TO_16", "LabelMerge", "class_weights", "get_merge", "merge_names"]

#: Label of a point that no loss and no score counts.
IGNORE = -100

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

#: Fine name -> class of the lidarseg challenge; fine names that are not here are ignored there.
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

#: Merge -> class -> the classes of the lidarseg challenge that it takes; the others are ignored.
_MERGES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "nuscenes-6": {
        "vehicle": ("bicycle", "bus", "car", "construction_vehicle", "motorcycle", "trailer", "truck"),
        "driveable_surface": ("driveable_surface",),
        "sidewalk": ("sidewalk",),
        "terrain": ("terrain",),
        "manmade": ("manmade",),
        "vegetation": ("vegetation",),
    },
}


@dataclass(frozen=True, kw_only=True)
class LabelMerge:
    """Classes of a setting and the way to them: ``lut[raw id]`` is a class id, or ``IGNORE``."""

    name: str
    classes: tuple[str, ...]
    lut: Int64[np.ndarray, "raw"]

    def apply(self, raw: Integer[np.ndarray, "points"]) -> Int64[np.ndarray, "points"]:
        """Class id, 0 to C - 1 or ``IGNORE``, of each raw label.

        Raises:
            DataError: a raw label is not an id of the data set.
        """
        if len(raw) and not 0 <= int(raw.min()) <= int(raw.max()) < len(self.lut):
            worst = int(raw.max()) if int(raw.max()) >= len(self.lut) else int(raw.min())
            raise DataError(
                f"Label {worst} is not an id of merge '{self.name}': raw labels go from 0 to {len(self.lut) - 1}"
            )
        return self.lut[raw]


def merge_names() -> list[str]:
    """Names that ``get_merge`` knows."""
    return sorted(_MERGES)


def get_merge(name: str) -> LabelMerge:
    """The label merge called ``name``.

    Raises:
        ConfigError: there is no such merge; the message names the nearest.
    """
    if name not in _MERGES:
        raise ConfigError(f"There is no label merge '{name}'; {nearest(name, merge_names())} (setting data.merge)")
    groups = _MERGES[name]
    class_of = {member: number for number, members in enumerate(groups.values()) for member in members}
    lut = [class_of.get(NUSCENES_32_TO_16.get(fine, ""), IGNORE) for fine in NUSCENES_32]
    return LabelMerge(name=name, classes=tuple(groups), lut=np.array(lut, np.int64))


def class_weights(counts: Int[np.ndarray, "classes"]) -> Float[np.ndarray, "classes"]:
    """Weights of the cross entropy from points per class: log(5 total / n_c), divided by the smallest (float64).

    A class without a point has no finite weight by that formula; it gets 1, the smallest, since no label can ask
    for it.

    Raises:
        DataError: no class has a point.
    """
    if not counts.sum():
        raise DataError("Class weights need labelled points, and not one point of the selection has a class")
    weights = np.full(len(counts), np.inf)
    seen = counts > 0
    weights[seen] = np.log(5 * counts.sum() / counts[seen])
    weights /= weights.min()
    weights[~seen] = 1.0
    return weights
