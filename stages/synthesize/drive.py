"""The ego car's way down a street: a smooth pose at any time.

The car keeps its lane at the street's cruising speed (so it meets nobody in its lane), drifts a little within the lane
and rocks a little on its springs. The pose is an analytic function of time: every sensor stamp has its own exact pose.
"""

import numpy as np
from jaxtyping import Float64

from .poses import rigid, rotation
from .world import World

__all__ = ["Drive"]

DRIFT = 0.15
DRIFT_LENGTH = 35.0
ROCKING = 0.004


class Drive:
    """A drive through ``world`` that passes distance 0 of the lane at time 0.

    Args:
        world: the street.
        rng: draws the phases of drifting and rocking, so that drives differ.
    """

    def __init__(self, *, world: World, rng: np.random.Generator) -> None:
        self._world = world
        self._phases = rng.uniform(0.0, 2 * np.pi, 3)
        self._periods = rng.uniform((0.9, 1.0, 0.9), (1.3, 1.6, 1.1))

    def distance(self, time: float) -> float:
        """Metres along the lane at ``time`` (seconds)."""
        return self._world.cruise_speed * time

    def world_from_ego(self, time: float) -> Float64[np.ndarray, "4 4"]:
        """Pose of the ego frame (rear axle, on the ground; x forward, y left, z up) at ``time`` (seconds)."""
        distance = self.distance(time)
        x, y, yaw = self._world.lane_pose(distance)
        angle = 2 * np.pi * distance / (DRIFT_LENGTH * self._periods[2]) + self._phases[2]
        offset = DRIFT * np.sin(angle)
        slope = DRIFT * np.cos(angle) * 2 * np.pi / (DRIFT_LENGTH * self._periods[2])
        pitch, roll = ROCKING * np.sin(2 * np.pi * time / self._periods[:2] + self._phases[:2])
        turn = rotation(yaw=yaw + np.arctan(slope), pitch=pitch, roll=roll)
        return rigid(turn, (x - offset * np.sin(yaw), y + offset * np.cos(yaw), 0.0))
