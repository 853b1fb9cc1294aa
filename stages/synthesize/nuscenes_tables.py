"""The tables of a nuScenes root: tokens, the fixed tables, and the assembly of all thirteen plus ``lidarseg``.

A token is a digest of the root's seed and of a path that identifies the row (scene, channel, timestamp ...), so equal
seeds give equal tokens and any worker can compute the token of any row.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from ..datasets.catalogue import NUSCENES_32
from .plan import ScenePlan
from .rigs import LIDAR, rig

__all__ = ["SCENE_TABLES", "VERSION", "Row", "Tokens", "assemble_tables"]

VERSION = "v1.0-trainval"

Row = dict[str, Any]

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)

VISIBILITIES = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}

SCENE_TABLES = ("scene", "sample", "sample_data", "ego_pose", "instance", "sample_annotation", "lidarseg")
"""The tables whose rows belong to one scene each."""


class Tokens:
    """Tokens of rows: 32 hexadecimal digits from the root's seed and a path of words."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, *path: object) -> str:
        """Returns the token of the row at ``path``."""
        text = "/".join(["xd3d", str(self._seed), *map(str, path)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def assemble_tables(
    *,
    tokens: Tokens,
    plans: Sequence[ScenePlan],
    scene_rows: Iterable[dict[str, list[Row]]],
    cameras: tuple[str, ...],
    image_size: tuple[int, int],
) -> dict[str, list[Row]]:
    """Joins the rows of every scene, in plan order, with the tables of the whole root."""
    channels = (LIDAR, *cameras)
    logs = {plan.group.logfile: plan.group for plan in plans}
    tables: dict[str, list[Row]] = {
        "category": [
            {"token": tokens("category", name), "name": name, "description": "", "index": index}
            for index, name in enumerate(NUSCENES_32)
        ],
        "attribute": [{"token": tokens("attribute", name), "name": name, "description": ""} for name in ATTRIBUTES],
        "visibility": [
            {"token": token, "level": level, "description": "share of the LiDAR beams towards the box that reach it"}
            for token, level in VISIBILITIES.items()
        ],
        "sensor": [
            {
                "token": tokens("sensor", channel),
                "channel": channel,
                "modality": "lidar" if channel == LIDAR else "camera",
            }
            for channel in channels
        ],
        "calibrated_sensor": [],
        "log": [
            {
                "token": tokens("log", logfile),
                "logfile": logfile,
                "vehicle": group.vehicle,
                "date_captured": f"{group.start:%Y-%m-%d}",
                "location": group.location,
            }
            for logfile, group in logs.items()
        ],
        "map": [
            {
                "category": "semantic_prior",
                "token": tokens("map", location),
                "filename": f"maps/{tokens('map', location)}.png",
                "log_tokens": [tokens("log", name) for name, group in logs.items() if group.location == location],
            }
            for location in dict.fromkeys(group.location for group in logs.values())
        ],
        **{name: [] for name in SCENE_TABLES},
    }
    for logfile, group in logs.items():
        car = rig(group.vehicle, cameras=cameras, image_size=image_size)
        tables["calibrated_sensor"] += [
            {
                "token": tokens("calibrated_sensor", logfile, channel),
                "sensor_token": tokens("sensor", channel),
                **car.calibration(channel),
            }
            for channel in channels
        ]
    for rows in scene_rows:
        for name in SCENE_TABLES:
            tables[name] += rows[name]
    return tables
