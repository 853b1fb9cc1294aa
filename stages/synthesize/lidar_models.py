"""The LiDAR sensors of the cars: beams, range, and errors."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...errors import ConfigError

__all__ = [
    "LidarModel",
    "boston_lidar",
    "dense_lidar",
    "near_lidar",
    "singapore_lidar",
    "sparse_lidar",
    "uneven_lidar",
]


@dataclass(frozen=True, kw_only=True)
class LidarModel:
    """A sensor that rotates clockwise, seen from above. LiDAR frame: x right, y forward, z up.

    Raises:
        ConfigError: beams are not ascending, there is no azimuth step, or range or spin is not positive.
    """

    elevations: tuple[float, ...]  # radians, ring 0 (lowest) first
    azimuth_steps: int
    max_range: float  # metres
    range_noise: float  # standard deviation, metres
    dropout: float  # share of lost returns at any range
    gain: float  # factor of intensities
    mount_height: float  # metres above the ground, for the drive
    spin_seconds: float
    start_azimuth: float  # radians from forward, clockwise: the beam's azimuth at the start of the spin

    def __post_init__(self) -> None:
        if not self.elevations or any(b <= a for a, b in pairwise(self.elevations)):
            raise ConfigError(f"a LiDAR needs beams that rise from ring to ring, got elevations {self.elevations}")
        if self.azimuth_steps < 1 or self.max_range <= 0 or self.spin_seconds <= 0:
            raise ConfigError(
                f"a LiDAR needs azimuth steps, a range and a spin above 0, got {self.azimuth_steps} steps, "
                f"{self.max_range} m and {self.spin_seconds} s"
            )

    def fraction_at(self, azimuth: float) -> float:
        """Return the fraction of the spin, in [0, 1), at which the beam passes ``azimuth`` (as ``start_azimuth``).

        A camera in this direction is synchronised if exposed at stamp - spin_seconds * (1 - fraction).
        """
        return float(np.mod(azimuth - self.start_azimuth, 2 * np.pi) / (2 * np.pi)) % 1.0


def boston_lidar() -> LidarModel:
    """Return the sensor of the Boston car: 32 evenly spaced beams, as in nuScenes."""
    return LidarModel(
        elevations=tuple(np.radians(np.linspace(-30.67, 10.67, 32)).tolist()),
        azimuth_steps=1080,
        max_range=90.0,
        range_noise=0.015,
        dropout=0.03,
        gain=1.4,
        mount_height=1.84,
        spin_seconds=0.05,
        start_azimuth=np.pi,
    )


def singapore_lidar() -> LidarModel:
    """Return the sensor of the Singapore car: beams dense at the horizon, fewer steps, more noise, mounted higher."""
    spread = np.linspace(-1, 1, 32)
    degrees = -7.5 + 17.5 * (0.55 * spread + 0.45 * spread**3)
    return LidarModel(
        elevations=tuple(np.radians(degrees).tolist()),
        azimuth_steps=900,
        max_range=75.0,
        range_noise=0.028,
        dropout=0.06,
        gain=1.0,
        mount_height=2.05,
        spin_seconds=0.05,
        start_azimuth=np.pi,
    )


def dense_lidar() -> LidarModel:
    """Return the sensor of the third car: 64 beams that look down more than up, as a Velodyne HDL-64E's, on a rack."""
    upper, lower = np.linspace(-8.33, 2.0, 32), np.linspace(-24.33, -8.83, 32)
    return LidarModel(
        elevations=tuple(np.radians(np.concatenate([lower, upper])).tolist()),
        azimuth_steps=1440,
        max_range=100.0,
        range_noise=0.02,
        dropout=0.05,
        gain=1.1,
        mount_height=2.45,
        spin_seconds=0.05,
        start_azimuth=np.pi,
    )


def sparse_lidar() -> LidarModel:
    """Return the sensor of the fourth car: 22 beams on a lower rack, with a shorter range and more drop-out."""
    return LidarModel(
        elevations=tuple(np.radians(np.linspace(-24.0, 9.0, 22)).tolist()),
        azimuth_steps=960,
        max_range=65.0,
        range_noise=0.025,
        dropout=0.08,
        gain=0.85,
        mount_height=1.6,
        spin_seconds=0.05,
        start_azimuth=np.pi,
    )


def uneven_lidar() -> LidarModel:
    """Return the sensor of the fifth car: 40 beams, a degree or more apart but for a dense band below the horizon."""
    degrees = [*np.linspace(-25.0, -7.0, 10), *np.linspace(-6.0, 2.0, 25), *np.linspace(4.0, 15.0, 5)]
    return LidarModel(
        elevations=tuple(np.radians(degrees).tolist()),
        azimuth_steps=1250,
        max_range=120.0,
        range_noise=0.02,
        dropout=0.04,
        gain=0.7,
        mount_height=1.68,
        spin_seconds=0.05,
        start_azimuth=np.pi,
    )


def near_lidar() -> LidarModel:
    """Return the near-range sensor of the truck: 64 even beams, many steps, low, and a short range."""
    return LidarModel(
        elevations=tuple(np.radians(np.linspace(-22.5, 22.5, 64)).tolist()),
        azimuth_steps=1536,
        max_range=45.0,
        range_noise=0.012,
        dropout=0.04,
        gain=1.8,
        mount_height=1.1,
        spin_seconds=0.05,
        start_azimuth=np.pi,
    )
