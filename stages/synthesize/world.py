"""One street as a function of time: its geometry, its annotated objects, and the ego car's drive through it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from .actors import keep_side, populate
from .classes import CATEGORY_NAMES
from .layout import build_street, make_ground
from .poses import rigid, rotation
from .primitives import Solids
from .styles import Style

__all__ = ["Drive", "ObjectBox", "World"]

DRIFT = 0.15  # metres
DRIFT_LENGTH = 35.0  # metres
SWAY = 0.004  # radians


@dataclass(frozen=True)
class ObjectBox:
    """An annotated object at one instant, in the world frame (metres; x east, y north, z up)."""

    instance: int  # the same object has the same number at all times
    category: str  # official category name
    centre: tuple[float, float, float]
    size: tuple[float, float, float]  # width, length, height, as nuScenes orders them
    yaw: float  # radians from the x axis, anticlockwise; the heading of a vehicle
    velocity: tuple[float, float]  # metres per second along x and y; (0, 0) when parked


class World:
    """A street along x from ``distance`` 0 to ``length`` (with 120 m more built beyond both ends).

    ``style`` is the look; its ``stream`` and ``seed``, the street's number within it, together seed the geometry: equal
    styles and seeds give equal worlds, bit for bit. ``length``: metres that can be driven.

    Attributes:
        ground: road, sidewalks and terrain.
        actors: everything that gets a box.
        cruise_speed: metres per second of all traffic in the ego lane; a car of this speed hits nothing.
    """

    def __init__(self, style: Style, seed: int, *, length: float = 300.0) -> None:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(style.stream,)))
        self.style = style
        self.length = length
        self.cruise_speed = float(rng.uniform(*style.traffic.speed))
        self.ground = make_ground(style, length, rng)
        self._fixed = build_street(style, self.ground, length, rng)
        self.actors = populate(style, self.ground, length, self.cruise_speed, rng)

    def lane_pose(self, distance: float) -> tuple[float, float, float]:
        """Returns x, y (metres) and yaw (radians) of the ego lane's centre; ``distance`` is measured along x.

        The ego lane keeps to the style's traffic side. A car at ``distance = cruise_speed * time`` meets no other
        vehicle in it; any other position may be occupied.
        """
        layout, x = self.style.layout, np.array([distance])
        offset = keep_side(self.style) * (layout.lanes - 0.5) * layout.lane_width
        return distance, float(self.ground.centre(x)[0]) + offset, float(np.arctan(self.ground.slope(x)[0]))

    def objects(self, time: float) -> list[ObjectBox]:
        """Returns the box of every vehicle, person, cone and barrier at ``time`` (seconds)."""
        actors = self.actors
        x, y, z, yaw = actors.poses(self.ground, np.array([time]))
        velocity = actors.velocities(self.ground, time)
        return [
            ObjectBox(
                instance=row,
                category=CATEGORY_NAMES[int(actors.label[row])],
                centre=(float(x[row]), float(y[row]), float(z[row] + actors.size[row, 2] / 2)),
                size=(float(actors.size[row, 0]), float(actors.size[row, 1]), float(actors.size[row, 2])),
                yaw=float(yaw[row]),
                velocity=(float(velocity[row, 0]), float(velocity[row, 1])),
            )
            for row in range(len(actors.label))
        ]

    def solids(self, time: float | Float64[np.ndarray, " A"]) -> Solids:
        """Returns all solids in the world frame at ``time`` (seconds), or with each actor at a time of its own."""
        poses = self.actors.poses(self.ground, np.atleast_1d(np.asarray(time, np.float64)))
        return Solids.join([self._fixed, self.actors.solids.placed(*poses)])


class Drive:
    """The ego car's drive through ``world``: a smooth pose at any time, at distance 0 of the lane at time 0.

    The car keeps its lane at the street's cruising speed, so that no vehicle in its lane is met. It drifts a little
    within the lane and sways a little on its springs. The pose is an analytic function of time: every sensor timestamp
    has its exact pose. ``rng`` draws the phases of drift and sway.
    """

    def __init__(self, *, world: World, rng: np.random.Generator) -> None:
        self._world = world
        self._phases = rng.uniform(0.0, 2 * np.pi, 3)
        self._periods = rng.uniform((0.9, 1.0, 0.9), (1.3, 1.6, 1.1))

    def world_from_ego(self, time: float) -> Float64[np.ndarray, "4 4"]:
        """Returns the ego pose (rear axle, on the ground; x forward, y left, z up) at ``time`` (seconds)."""
        distance = self._world.cruise_speed * time
        x, y, yaw = self._world.lane_pose(distance)
        angle = 2 * np.pi * distance / (DRIFT_LENGTH * self._periods[2]) + self._phases[2]
        offset = DRIFT * np.sin(angle)
        slope = DRIFT * np.cos(angle) * 2 * np.pi / (DRIFT_LENGTH * self._periods[2])
        pitch, roll = SWAY * np.sin(2 * np.pi * time / self._periods[:2] + self._phases[:2])
        turn = rotation(yaw=yaw + np.arctan(slope), pitch=pitch, roll=roll)
        return rigid(turn, (x - offset * np.sin(yaw), y + offset * np.cos(yaw), 0.0))
