"""A spinning LiDAR: beams, range, drop-out, intensity, fog, and ego motion during the spin."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from ...errors import ConfigError
from .classes import DRIVEABLE, NOISE
from .lidar_rays import LidarRays
from .materials import GLASS, GROUND_MATERIALS, MARKING, REFLECTIVITY, SNOW, is_window, marked
from .primitives import Solids
from .snow import ground_cover, solid_cover
from .trace import GROUND, Hits, cast, surface
from .world import World

__all__ = ["LidarModel", "Sweep", "scan"]

_NEAREST = 1.0  # metres; nearer returns hit the ego car and are dropped
_INTENSITY, _ABSORBS, _ROUGHNESS = np.array([REFLECTIVITY[material] for material in sorted(REFLECTIVITY)]).T
_AIR = {"dense fog": (0.9, 5.0, 4), "snow": (0.6, 6.0, 25)}
"""Of precipitation and fog: largest share of beams that it returns, mean depth in metres, largest intensity."""


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
        """Returns the fraction of the spin, in [0, 1), at which the beam passes ``azimuth`` (as ``start_azimuth``).

        A camera in this direction is synchronised if exposed at stamp - spin_seconds * (1 - fraction).
        """
        return float(np.mod(azimuth - self.start_azimuth, 2 * np.pi) / (2 * np.pi)) % 1.0


@dataclass(frozen=True, eq=False)
class Sweep:
    """Points x, y, z (metres, LiDAR frame at the stamp), intensity 0-255, ring; and their raw lidarseg ids."""

    points: Float32[np.ndarray, "P 5"]
    labels: UInt8[np.ndarray, " P"]


def scan(
    world: World,
    lidar: LidarModel,
    world_from_lidar_start: Float[np.ndarray, "4 4"],
    world_from_lidar_end: Float[np.ndarray, "4 4"],
    time: float,
    rng: np.random.Generator,
) -> Sweep:
    """Scans the world during one spin that ends at ``time``, the stamp.

    The pose runs from ``world_from_lidar_start`` (at ``time`` - spin_seconds) to ``world_from_lidar_end``; points are
    given in the LiDAR frame at the end, as motion-compensated sweeps are. Each moving object is hit at its position
    at the time the beam passes it. Returns of fog, rain or snow in the air are labelled noise.
    """
    start, end = (np.asarray(pose, np.float64) for pose in (world_from_lidar_start, world_from_lidar_end))
    azimuth = lidar.start_azimuth + 2 * np.pi * (np.arange(lidar.azimuth_steps) + 0.5) / lidar.azimuth_steps
    rays = LidarRays(
        elevations=np.array(lidar.elevations),
        azimuths=azimuth,
        world_from_lidar_start=start,
        world_from_lidar_end=end,
        max_range=lidar.max_range,
    )
    solids = world.solids(_beam_times(world, lidar, end, time))
    hits = cast(rays, solids, world.ground)
    rows, columns = np.nonzero(hits.distance < lidar.max_range)
    label, material, facing = _answers(world, solids, rays, hits, rows, columns)
    exact = hits.distance[rows, columns].astype(np.float64)
    distance, intensity, kept = _measure(lidar, material, facing, exact, world.style.light.extinction, rng)
    if world.style.light.weather == "snow":  # flakes return even without a surface behind them
        sky_rows, sky_columns = np.nonzero(~(hits.distance < lidar.max_range))
        rows, columns, sky = np.append(rows, sky_rows), np.append(columns, sky_columns), np.zeros(len(sky_rows), bool)
        distance, intensity = np.append(distance, sky + lidar.max_range), np.append(intensity, sky)
        label, kept = np.append(label, np.full(len(sky), NOISE, np.uint8)), np.append(kept, sky)
    if world.style.light.weather != "clear":
        distance, intensity, label, kept = _scatter(world, distance, intensity, label, kept, rng)
    points = rays.origin[:, 0, columns].T + rays.direction[:, rows, columns].T * distance[:, None]
    local = (points - end[:3, 3]) @ end[:3, :3]
    chosen = kept & (distance > _NEAREST) & (distance < lidar.max_range)
    table = np.concatenate([local, intensity[:, None], rows[:, None]], axis=1).astype(np.float32)
    return Sweep(table[chosen], label[chosen])


def _beam_times(
    world: World, lidar: LidarModel, world_from_lidar: np.ndarray, time: float
) -> Float64[np.ndarray, " A"]:
    """Returns when the beam passes each actor."""
    x, y, _, _ = world.actors.poses(world.ground, np.array([time]))
    offset = np.stack([x, y]) - world_from_lidar[:2, 3:4]
    right, forward = world_from_lidar[:2, 0] @ offset, world_from_lidar[:2, 1] @ offset
    turned = np.mod(np.arctan2(right, forward) - lidar.start_azimuth, 2 * np.pi) / (2 * np.pi)
    return time - lidar.spin_seconds * (1 - turned)


def _answers(
    world: World, solids: Solids, rays: LidarRays, hits: Hits, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns label, material and cosine of incidence of each surface that was hit."""
    solid, distance = hits.solid[rows, columns], hits.distance[rows, columns]
    direction = rays.direction[:, rows, columns].T
    points = rays.origin[:, 0, columns].T + direction * distance[:, None]
    label, material = np.empty(len(solid), np.uint8), np.empty(len(solid), np.int64)
    normals = np.zeros_like(points)
    ground = solid == GROUND
    x, y = points[ground, 0], points[ground, 1]
    label[ground] = world.ground.classes(x, y)
    normals[ground, 2] = 1
    kind = np.array([GROUND_MATERIALS.get(number, 0) for number in range(256)])[label[ground]]
    if world.style.materials.marked:
        white, centre = marked(world.ground, x, y)
        kind[(white | centre) & (label[ground] == DRIVEABLE)] = MARKING
    snow = world.style.light.weather == "snow"
    if snow:
        kind[ground_cover(world.ground, label[ground], x, y) > 0.5] = SNOW
    material[ground] = kind
    index = solid[~ground]
    label[~ground] = solids.label[index]
    local, normals[~ground] = surface(solids, index, points[~ground])
    window = is_window(world.style, solids, index, local)
    kind = np.where(window, GLASS, solids.material[index])
    if snow:
        kind[solid_cover(kind, points[~ground], normals[~ground]) > 0.5] = SNOW
    material[~ground] = kind
    return label, material, np.abs((normals * direction).sum(axis=1)).astype(np.float64)


def _measure(
    lidar: LidarModel,
    material: np.ndarray,
    facing: np.ndarray,
    distance: np.ndarray,
    extinction: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns measured range and intensity of each hit, and whether it is strong enough for a return."""
    air = np.exp(-2 * extinction * distance)
    strength = _INTENSITY[material] * (0.25 + 0.75 * facing) * air
    echo = strength * np.minimum(1.0, (25.0 / np.maximum(distance, 1.0)) ** 2)
    lost = lidar.dropout + _ABSORBS[material] * (0.4 + 0.6 * (1 - facing))
    weak = np.exp(-echo / 0.35)
    kept = rng.random(len(distance)) > 1 - (1 - np.clip(lost, 0, 1)) * (1 - weak)
    spread = np.hypot(lidar.range_noise, _ROUGHNESS[material])
    measured = distance + spread * rng.standard_normal(len(distance))
    speckle = 1 + 0.18 * rng.standard_normal(len(distance))
    intensity = np.clip(np.round(lidar.gain * strength * speckle), 0, 255)
    return measured, intensity, kept


def _scatter(
    world: World,
    distance: np.ndarray,
    intensity: np.ndarray,
    label: np.ndarray,
    kept: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Replaces some returns by those of droplets or flakes in front of the surface, near the sensor."""
    light = world.style.light
    most, mean_depth, brightest = _AIR.get(light.weather, (0.5, 4.0, 4))
    chance = most * (1 - np.exp(-light.extinction * np.minimum(distance, 15.0)))
    depth = 1.5 + rng.exponential(mean_depth, len(distance))
    droplet = (rng.random(len(distance)) < chance) & (depth < distance)
    return (
        np.where(droplet, depth, distance),
        np.where(droplet, rng.integers(0, brightest, len(distance)), intensity),
        np.where(droplet, np.uint8(NOISE), label),
        kept | droplet,
    )
