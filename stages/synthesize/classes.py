"""Classes of the synthetic city: ids of raw lidarseg labels, as in ``category.json`` of the official data set."""

from ..datasets.catalogue import NUSCENES_32

NOISE = SKY = 0
ADULT, CHILD, CONSTRUCTION_WORKER = 2, 3, 4
BARRIER, CONE = 9, 12
BICYCLE, BUS, CAR, CONSTRUCTION_VEHICLE = 14, 16, 17, 18
MOTORCYCLE, TRAILER, TRUCK = 21, 22, 23
DRIVEABLE, SIDEWALK, TERRAIN = 24, 26, 27
MANMADE, VEGETATION = 28, 30

CATEGORY_NAMES: dict[int, str] = {
    label: NUSCENES_32[label] for label in (0, 2, 3, 4, 9, 12, 14, 16, 17, 18, 21, 22, 23, 24, 26, 27, 28, 30)
}
"""The official category name of each id used here."""
