"""One street as a function of time: the geometry that cameras and LiDAR intersect, and the objects that get boxes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from .styles import Style

__all__ = ["ObjectBox", "World"]


@dataclass(frozen=True)
class ObjectBox:
    """An annotated object at one instant, in the world frame (metres; x east, y north, z up)."""

    instance: int  # the same object has the same number at all times
    category: str  # official category name
    centre: tuple[float, float, float]
    size: tuple[float, float, float]  # width, length, height, as nuScenes orders them
    yaw: float  # radians from the x axis, anticlockwise; the heading of a vehicle
    velocity: tuple[float, float]  # metres a second along x and y; (0, 0) when parked


class World:
    """A street along x from ``distance`` 0 to ``length`` (with 120 m more built beyond both ends).

    Args:
        style: the look.
        seed: the street's number within the style's stream; equal seeds give equal worlds, bit for bit.
        length: metres that can be driven.
    """

    def __init__(self, style: Style, seed: int, *, length: float = 300.0) -> None:
        self.style = style
        self.seed = seed
        self.length = length
        self.cruise_speed = 6.0  # metres a second of all traffic in the ego lane: drive so and nothing is hit

    def lane_pose(self, distance: float) -> tuple[float, float, float]:
        """Return x, y (metres) and yaw (radians) of the ego lane's centre ``distance`` metres along the street.

        The ego lane keeps to the style's traffic side; a drive at ``cruise_speed`` that is at distance 0 at time 0 meets
        no other vehicle in its lane.
        """
        raise NotImplementedError

    def objects(self, time: float) -> list[ObjectBox]:
        """Return the box of every vehicle, person, cone and barrier at ``time`` (seconds)."""
        raise NotImplementedError

    def ground_class(self, x: Float[np.ndarray, "*S"], y: Float[np.ndarray, "*S"]) -> UInt8[np.ndarray, "*S"]:
        """Return the raw label of the ground at points of the world (driveable, sidewalk or terrain)."""
        raise NotImplementedError
