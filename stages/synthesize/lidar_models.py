"""The LiDAR sensors of the cars: beams, range, and errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float64

from ...errors import ConfigError

__all__ = ["LIDARS", "LidarModel"]


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
    spin_seconds: float = 0.05
    start_azimuth: float = np.pi  # radians from forward, clockwise: the beam's azimuth at the start of the spin

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


def _radians(*degrees: Float64[np.ndarray, "_"]) -> tuple[float, ...]:
    return tuple(np.radians(np.concatenate(degrees)).tolist())


_SPREAD = np.linspace(-1, 1, 32)

LIDARS: Mapping[str, LidarModel] = {
    # The car of Boston: 32 evenly spaced beams, as in nuScenes.
    "boston": LidarModel(
        elevations=_radians(np.linspace(-30.67, 10.67, 32)),
        azimuth_steps=1080,
        max_range=90.0,
        range_noise=0.015,
        dropout=0.03,
        gain=1.4,
        mount_height=1.84,
    ),
    # The car of Singapore: beams dense at the horizon, fewer steps, more noise, mounted higher.
    "singapore": LidarModel(
        elevations=_radians(-7.5 + 17.5 * (0.55 * _SPREAD + 0.45 * _SPREAD**3)),
        azimuth_steps=900,
        max_range=75.0,
        range_noise=0.028,
        dropout=0.06,
        gain=1.0,
        mount_height=2.05,
    ),
    # The third car: 64 beams that look down more than up, as a Velodyne HDL-64E's, on a rack.
    "dense": LidarModel(
        elevations=_radians(np.linspace(-24.33, -8.83, 32), np.linspace(-8.33, 2.0, 32)),
        azimuth_steps=1440,
        max_range=100.0,
        range_noise=0.02,
        dropout=0.05,
        gain=1.1,
        mount_height=2.45,
    ),
    # The fourth car: 22 beams on a lower rack, with a shorter range and more drop-out.
    "sparse": LidarModel(
        elevations=_radians(np.linspace(-24.0, 9.0, 22)),
        azimuth_steps=960,
        max_range=65.0,
        range_noise=0.025,
        dropout=0.08,
        gain=0.85,
        mount_height=1.6,
    ),
    # The fifth car: 40 beams, a degree or more apart but for a dense band below the horizon.
    "uneven": LidarModel(
        elevations=_radians(np.linspace(-25.0, -7.0, 10), np.linspace(-6.0, 2.0, 25), np.linspace(4.0, 15.0, 5)),
        azimuth_steps=1250,
        max_range=120.0,
        range_noise=0.02,
        dropout=0.04,
        gain=0.7,
        mount_height=1.68,
    ),
    # The truck: 64 even beams near the ground, many steps, and a short range.
    "near": LidarModel(
        elevations=_radians(np.linspace(-22.5, 22.5, 64)),
        azimuth_steps=1536,
        max_range=45.0,
        range_noise=0.012,
        dropout=0.04,
        gain=1.8,
        mount_height=1.1,
    ),
}
"""The sensors by name."""
