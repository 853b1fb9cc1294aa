"""The table rows of one scene, collected frame by frame and linked at the end, and what a sweep shows of its boxes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from .nuscenes_tables import VERSION, Row, Tokens
from .plan import ScenePlan
from .poses import quaternion, rotation
from .rigs import LIDAR
from .world import ObjectBox

__all__ = ["BoxSight", "SceneRows", "attribute", "sights", "visibility"]

MOVING_SPEED = 0.3  # metres per second
_PHRASES = (
    ("vehicle.car", 25, "dense traffic"),
    ("vehicle.car", 1, "cars"),
    ("human.pedestrian", 15, "many peds"),
    ("human.pedestrian", 1, "peds on sidewalk"),
    ("movable_object", 3, "road works"),
    ("vehicle.bus", 2, "buses"),
    ("vehicle.truck", 2, "trucks"),
    ("vehicle.bicycle", 2, "bicycles"),
    ("vehicle.motorcycle", 3, "motorcycles"),
)
"""Prefix of a category, number of its objects from which it is mentioned, and the words; the first match counts."""


@dataclass(frozen=True)
class BoxSight:
    """Statistics of a box in a sweep: number of points in it, and the share of beams towards it that reach it."""

    points: int
    visible: float


class SceneRows:
    """Rows of the seven tables that grow with a scene; timestamps in microseconds, poses in metres, global frame."""

    def __init__(self, *, tokens: Tokens, plan: ScenePlan) -> None:
        self._token = tokens
        self._plan = plan
        self._samples: list[Row] = []
        self._data: dict[str, list[Row]] = defaultdict(list)
        self._poses: list[Row] = []
        self._labels: list[Row] = []
        self._annotations: dict[int, list[Row]] = defaultdict(list)
        self._categories: dict[int, str] = {}

    def add_sample(self, stamp: int) -> str:
        """Opens a keyframe; returns its token."""
        token = self._token(self._plan.name, "sample", len(self._samples))
        self._samples.append({"token": token, "timestamp": stamp, "scene_token": self._token(self._plan.name)})
        return token

    def add_data(
        self,
        *,
        sample: str,
        channel: str,
        stamp: int,
        global_from_ego: Float64[np.ndarray, "4 4"],
        keyframe: bool,
        size: tuple[int, int] = (0, 0),
    ) -> Row:
        """Adds a sensor file with the ego pose at its timestamp; ``size`` is width, height of a picture.

        Returns:
            The row; its ``filename`` is the path of the file.
        """
        logfile = self._plan.group.logfile
        token = self._token(self._plan.name, channel, stamp)
        folder, suffix = "samples" if keyframe else "sweeps", "pcd.bin" if channel == LIDAR else "jpg"
        row: Row = {
            "token": token,
            "sample_token": sample,
            "ego_pose_token": token,
            "calibrated_sensor_token": self._token("calibrated_sensor", logfile, channel),
            "timestamp": stamp,
            "fileformat": suffix.split(".")[0],
            "is_key_frame": keyframe,
            "height": size[1],
            "width": size[0],
            "filename": f"{folder}/{channel}/{logfile}__{channel}__{stamp}.{suffix}",
        }
        self._data[channel].append(row)
        self._poses.append(
            {
                "token": token,
                "timestamp": stamp,
                "rotation": quaternion(global_from_ego[:3, :3]),
                "translation": global_from_ego[:3, 3].tolist(),
            }
        )
        return row

    def add_labels(self, data: str) -> str:
        """Adds the label file of the sweep with token ``data``; returns the file's path."""
        filename = f"lidarseg/{VERSION}/{data}_lidarseg.bin"
        self._labels.append({"token": data, "sample_data_token": data, "filename": filename})
        return filename

    def add_box(
        self, *, sample: str, box: ObjectBox, seen: BoxSight, global_from_world: Float64[np.ndarray, "4 4"]
    ) -> None:
        """Adds the box of an object that was seen in a keyframe."""
        name = attribute(box)
        self._categories[box.instance] = box.category
        self._annotations[box.instance].append(
            {
                "token": self._token(self._plan.name, sample, "box", box.instance),
                "sample_token": sample,
                "instance_token": self._token(self._plan.name, "instance", box.instance),
                "visibility_token": visibility(seen.visible),
                "attribute_tokens": [] if name is None else [self._token("attribute", name)],
                "translation": (global_from_world @ [*box.centre, 1.0])[:3].tolist(),
                "size": list(box.size),
                "rotation": quaternion(global_from_world[:3, :3] @ rotation(yaw=box.yaw)),
                "num_lidar_pts": seen.points,
                "num_radar_pts": 0,
            }
        )

    def tables(self) -> dict[str, list[Row]]:
        """Links the rows and returns them by table."""
        boxes = {instance: _linked(rows) for instance, rows in sorted(self._annotations.items())}
        return {
            "scene": [
                {
                    "token": self._token(self._plan.name),
                    "log_token": self._token("log", self._plan.group.logfile),
                    "nbr_samples": len(self._samples),
                    "first_sample_token": self._samples[0]["token"],
                    "last_sample_token": self._samples[-1]["token"],
                    "name": self._plan.name,
                    "description": self._description(),
                }
            ],
            "sample": _linked(self._samples),
            "sample_data": [row for rows in self._data.values() for row in _linked(rows)],
            "ego_pose": self._poses,
            "lidarseg": self._labels,
            "sample_annotation": [row for rows in boxes.values() for row in rows],
            "instance": [
                {
                    "token": rows[0]["instance_token"],
                    "category_token": self._token("category", self._categories[instance]),
                    "nbr_annotations": len(rows),
                    "first_annotation_token": rows[0]["token"],
                    "last_annotation_token": rows[-1]["token"],
                }
                for instance, rows in boxes.items()
            ],
        }

    def _description(self) -> str:
        """Describes light, weather and objects along the street in words."""
        group, weather = self._plan.group, self._plan.weather
        words = {"domain": f"domain {group.domain}"} if group.domain else {}
        words |= {"hour": group.hour} if group.hour != "day" else {}
        words |= {"weather": weather} if weather != "clear" else {}
        for start, fewest, phrase in _PHRASES:
            if sum(name.startswith(start) for name in self._categories.values()) >= fewest:
                words.setdefault(start, phrase)
        text = ", ".join(words.values()) or "empty street"
        return text[0].upper() + text[1:]


def _linked(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows, in order, each with the tokens of the previous and next row, "" at the ends."""
    tokens = ["", *(row["token"] for row in rows), ""]
    return [row | {"prev": tokens[place], "next": tokens[place + 2]} for place, row in enumerate(rows)]


def sights(
    boxes: Sequence[ObjectBox], points: Float[np.ndarray, "P 3"], origin: Float64[np.ndarray, " 3"]
) -> list[BoxSight]:
    """Computes the statistics from a sweep's ``points`` and the sensor's ``origin``, all in the world frame, metres.

    Beams whose line crosses a box count: those that end in it hit the object, those that end in front of it were
    occluded, and those that end behind it passed an empty part of the box (under a car, past an arm).
    """
    beams = (points - origin).astype(np.float64)
    lengths = np.linalg.norm(beams, axis=1)
    farthest = float(lengths.max(initial=0.0))
    return [_sight(box, beams, lengths, farthest, origin) for box in boxes]


def _sight(
    box: ObjectBox,
    beams: Float64[np.ndarray, "P 3"],
    lengths: Float64[np.ndarray, " P"],
    farthest: float,
    origin: Float64[np.ndarray, " 3"],
) -> BoxSight:
    half = np.array([box.size[1], box.size[0], box.size[2]]) / 2
    towards = np.array(box.centre) - origin
    reach, distance = float(np.linalg.norm(half)), float(np.linalg.norm(towards))
    if distance - reach > farthest:
        return BoxSight(points=0, visible=0.0)
    cosine = np.sqrt(max(0.0, 1 - (reach / distance) ** 2)) if distance > reach else -1.0
    beams = beams[beams @ (towards / distance) >= cosine * lengths]
    turn = rotation(yaw=box.yaw).T
    start, beams = turn @ -towards, beams @ turn.T
    inside = int(np.all(np.abs(start + beams) <= half, axis=1).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = np.sort([(-half - start) / beams, (half - start) / beams], axis=0)
    enter, leave = near.max(axis=1), far.min(axis=1)
    stopped = int(((leave > enter) & (enter > 1)).sum())
    return BoxSight(points=inside, visible=inside / max(1, inside + stopped))


def visibility(visible: float) -> str:
    """Returns the visibility token ("1" to "4") of a visible share."""
    return str(1 + sum(visible >= limit for limit in (0.4, 0.6, 0.8)))


def attribute(box: ObjectBox) -> str | None:
    """Returns the attribute of an object, or None for categories without attributes."""
    moving = float(np.hypot(*box.velocity)) > MOVING_SPEED
    if box.category in ("vehicle.bicycle", "vehicle.motorcycle"):
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if box.category.startswith("vehicle."):
        return "vehicle.moving" if moving else "vehicle.parked"
    if box.category.startswith("human.pedestrian."):
        return "pedestrian.moving" if moving else "pedestrian.standing"
    return None
