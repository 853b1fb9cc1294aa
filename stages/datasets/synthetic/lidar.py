"""A spinning LiDAR: beams, range, drop-out, intensity, fog, and ego motion during the spin."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8

from .world import World

__all__ = ["LidarModel", "Sweep", "boston_lidar", "scan", "singapore_lidar"]


@dataclass(frozen=True)
class LidarModel:
    """A sensor that turns clockwise, seen from above. LiDAR frame: x right, y forward, z up."""

    elevations: tuple[float, ...]  # radians, ring 0 (lowest) first
    azimuth_steps: int
    max_range: float  # metres
    range_noise: float  # standard deviation, metres
    dropout: float  # share of returns lost anywhere
    gain: float  # on intensities
    mount_height: float  # metres above the ground, for the drive
    spin_seconds: float
    start_azimuth: float  # radians from forward, clockwise: where the beam points when the spin starts

    def fraction_at(self, azimuth: float) -> float:
        """Return which part of the spin, in [0, 1), is over when the beam passes ``azimuth`` (as ``start_azimuth``).

        A camera that looks there is exposed at stamp - spin_seconds * (1 - fraction) to see what the beam sees.
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Sweep:
    """Points x, y, z (metres, LiDAR frame at the stamp), intensity 0-255, ring; and their raw lidarseg ids."""

    points: Float32[np.ndarray, "P 5"]
    labels: UInt8[np.ndarray, " P"]


def boston_lidar() -> LidarModel:
    """Return the sensor of the Boston car."""
    raise NotImplementedError


def singapore_lidar() -> LidarModel:
    """Return the sensor of the Singapore car: other beams, steps, noise and mounting."""
    raise NotImplementedError


def scan(
    world: World,
    lidar: LidarModel,
    world_from_lidar_start: Float[np.ndarray, "4 4"],
    world_from_lidar_end: Float[np.ndarray, "4 4"],
    time: float,
    rng: np.random.Generator,
) -> Sweep:
    """Scan the world during one spin that ends at ``time``, the stamp.

    The pose runs from ``world_from_lidar_start`` (at ``time`` - spin_seconds) to ``world_from_lidar_end``; points are
    given in the LiDAR frame at the end, as motion-compensated sweeps are. Moving objects are met where they are when
    the beam passes them.
    """
    raise NotImplementedError
