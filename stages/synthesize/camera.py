"""A pinhole camera: intrinsics, poses, and the picture of a world with labels and depth."""

from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, Int32, UInt8

from .classes import DRIVEABLE, SKY
from .light import GroundMaps, illuminate, own_headlights, sky_colour, through_air
from .materials import ground_look, solid_look
from .poses import EGO_FROM_CAMERA, rigid, rotation
from .primitives import Solids
from .snow import draw_flakes, ground_cover, solid_cover, under_snow
from .styles import Style
from .trace import GROUND, SKY_HIT, Hits, Windows, cast, surface
from .world import World

__all__ = ["CameraModel", "CameraRays", "Picture", "camera_pose", "render"]

_NEAR = 0.1  # metres
_FAR = 220.0  # metres; only the ground is drawn beyond
_EDGES = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b) in (1, 2, 4)])


@dataclass(frozen=True, eq=False)
class CameraModel:
    """Size in pixels and the 3x3 intrinsics K; pixel (column 0, row 0) covers u, v in [0, 1)."""

    width: int
    height: int
    intrinsics: Float64[np.ndarray, "3 3"]

    @classmethod
    def from_field_of_view(cls, *, width: int = 400, height: int = 225, degrees: float = 70.0) -> "CameraModel":
        """Makes a camera with square pixels, the principal point in the middle, and this horizontal field of view."""
        focal = width / 2 / np.tan(np.radians(degrees) / 2)
        return cls(width, height, np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]))


@dataclass(frozen=True, eq=False)
class Picture:
    """A rendered picture. ``labels`` are raw lidarseg ids (0: sky), ``depth`` is along z in metres (inf: sky)."""

    image: UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "H W"]
    depth: Float32[np.ndarray, "H W"]


def camera_pose(
    x: float, y: float, yaw: float, *, height: float = 1.5, pitch: float = 0.0
) -> Float64[np.ndarray, "4 4"]:
    """Returns ``world_from_camera`` of a camera at (x, y, ``height``) that looks along ``yaw``, ``pitch`` radians down.

    Camera frame: x right, y down, z forward.
    """
    return rigid(rotation(yaw=yaw, pitch=pitch) @ EGO_FROM_CAMERA, (x, y, height))


@dataclass(frozen=True, eq=False)
class CameraRays:
    """One ray per pixel, through its centre; directions have depth 1, so distances along them are depths."""

    camera: CameraModel
    world_from_camera: Float64[np.ndarray, "4 4"]
    origin: Float32[np.ndarray, "3 1 1"] = field(init=False)
    direction: Float32[np.ndarray, "3 H W"] = field(init=False)

    def __post_init__(self) -> None:
        camera, pose = self.camera, self.world_from_camera
        u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
        inverse = np.linalg.inv(camera.intrinsics)
        local = np.einsum("ij,jhw->ihw", inverse, np.stack([u, v, np.ones_like(u)]))
        direction = np.einsum("ij,jhw->ihw", pose[:3, :3], local)
        object.__setattr__(self, "origin", pose[:3, 3].astype(np.float32).reshape(3, 1, 1))
        object.__setattr__(self, "direction", direction.astype(np.float32))

    def windows(self, solids: Solids) -> Windows:
        """Bounds each solid in front of the camera by the pixels around its projected box, cut at the image plane."""
        rotation, position = self.world_from_camera[:3, :3], self.world_from_camera[:3, 3]
        radius = np.linalg.norm(solids.half, axis=1)
        depth = (solids.centre - position) @ rotation[:, 2]
        index = np.flatnonzero((depth + radius > _NEAR) & (depth - radius < _FAR))
        corners = (solids.take(index).corners() - position) @ rotation
        starts, ends = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
        span = ends[..., 2] - starts[..., 2]
        share = (_NEAR - starts[..., 2]) / np.where(np.abs(span) < 1e-9, 1e-9, span)
        cut = starts + np.clip(share, 0, 1)[..., None] * (ends - starts)
        points = np.concatenate([corners, cut], axis=1)
        valid = np.concatenate([corners[..., 2] >= _NEAR, (share > 0) & (share < 1)], axis=1)
        z = np.maximum(points[..., 2], _NEAR * 0.99)
        k = self.camera.intrinsics
        u = (k[0, 0] * points[..., 0] + k[0, 1] * points[..., 1]) / z + k[0, 2]
        v = k[1, 1] * points[..., 1] / z + k[1, 2]
        left, right = _bounds(u, valid, self.camera.width)
        top, bottom = _bounds(v, valid, self.camera.height)
        near = np.where(valid, points[..., 2], np.inf).min(axis=1).astype(np.float32)
        return Windows(index, top, bottom, left, right, near).ordered()


def _bounds(value: np.ndarray, valid: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixel range of valid projections within the image: first, and one past the last."""
    low = np.where(valid, value, np.inf).min(axis=1)
    high = np.where(valid, value, -np.inf).max(axis=1)
    first = np.floor(np.clip(low - 0.5, 0, size)).astype(np.int64)
    return first, np.ceil(np.clip(high + 0.5, 0, size)).astype(np.int64)


def render(
    world: World,
    camera: CameraModel,
    world_from_camera: Float[np.ndarray, "4 4"],
    time: float,
    rng: np.random.Generator,
) -> Picture:
    """Renders the world at ``time`` (seconds) from any pose; ``rng`` draws sensor noise, rain and flakes only."""
    rays = CameraRays(camera, np.asarray(world_from_camera, np.float64))
    solids = world.solids(time)
    hits = cast(rays, solids, world.ground)
    labels, radiance, glow = _shade(world, solids, rays, hits)
    shape = (camera.height, camera.width)
    radiance = radiance.reshape(*shape, 3)
    _soften_edges(radiance, hits.solid)
    light = world.style.light
    if light.weather == "snow":
        white, speed = light.air, world.cruise_speed
        radiance = draw_flakes(radiance, hits.distance, camera.intrinsics, speed=speed, light=white, rng=rng)
    image = _develop(world.style, radiance, glow.reshape(*shape, 3), rng)
    return Picture(image, labels.reshape(shape), hits.distance)


def _shade(world: World, solids: Solids, rays: CameraRays, hits: Hits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns label, radiance and light that causes glare of every ray, flattened."""
    style, light = world.style, world.style.light
    direction = rays.direction.reshape(3, -1).T
    length = np.linalg.norm(direction, axis=1)
    solid, depth = hits.solid.ravel(), hits.distance.ravel()
    distance = np.where(np.isfinite(depth), depth, 0) * length
    origin = rays.origin.reshape(3)
    points = origin + direction * np.where(np.isfinite(depth), depth, 0)[:, None]
    labels = np.full(len(solid), SKY, np.uint8)
    colour, normals = np.zeros_like(direction), np.zeros_like(direction)
    glow = np.zeros_like(direction)
    on_ground, on_solid = solid == GROUND, solid >= 0
    x, y = points[on_ground, 0], points[on_ground, 1]
    labels[on_ground] = world.ground.classes(x, y)
    colour[on_ground] = ground_look(style, world.ground, labels[on_ground], x, y, distance[on_ground])
    normals[on_ground] = 0, 0, 1
    index = solid[on_solid]
    labels[on_solid] = solids.label[index]
    local, normals[on_solid] = surface(solids, index, points[on_solid])
    colour[on_solid], glow[on_solid] = solid_look(style, solids, index, local, points[on_solid], distance[on_solid])
    if light.weather == "snow":
        cover, road = ground_cover(world.ground, labels[on_ground], x, y), labels[on_ground] == DRIVEABLE
        colour[on_ground] = under_snow(colour[on_ground], cover, road)
        cover = solid_cover(solids.material[index], points[on_solid], normals[on_solid])
        colour[on_solid] = under_snow(colour[on_solid], cover)
    maps = GroundMaps.draw(solids, light, float(origin[0]), float(origin[1]))
    hit = solid != SKY_HIT
    arriving = illuminate(maps, light, points[hit], normals[hit], on_ground[hit])
    if light.headlights > 0:
        arriving += own_headlights(light, world.ground, origin, points[hit])
    radiance = np.empty_like(direction)
    radiance[hit] = colour[hit] * arriving + glow[hit]
    sky = direction / length[:, None]
    radiance[~hit] = sky_colour(light, sky[~hit])
    if light.weather == "rain":
        _wet(radiance, sky, labels == DRIVEABLE, np.array(light.horizon, np.float32))
    way = np.where(hit, distance, 150 + 900 * np.clip(0.12 - sky[:, 2], 0, 0.12)).astype(np.float32)
    left = np.exp(-np.float32(light.extinction) * way)[:, None]
    return labels, through_air(light, radiance, way), glow * left


def _wet(radiance: np.ndarray, direction: np.ndarray, road: np.ndarray, horizon: np.ndarray) -> None:
    """Darkens a wet road and adds reflections of the sky at grazing angles."""
    mirror = (np.float32(0.55) * (1 - np.abs(direction[road, 2])) ** 6)[:, None]
    radiance[road] = radiance[road] * np.float32(0.7) * (1 - mirror) + horizon * mirror


def _develop(
    style: Style, radiance: Float32[np.ndarray, "H W 3"], glow: Float32[np.ndarray, "H W 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Converts radiance to an 8-bit RGB picture: glare of ``glow``, rain, blur, white balance, gamma, sensor noise."""
    imaging = style.imaging
    width = radiance.shape[1]
    image = radiance
    if glow.max() > 0:
        height = radiance.shape[0]
        small = cv2.resize(glow, (max(width // 4, 1), max(height // 4, 1)), interpolation=cv2.INTER_AREA)
        spread = cv2.GaussianBlur(small, (0, 0), width / 440) + 0.6 * cv2.GaussianBlur(small, (0, 0), width / 140)
        image = image + 0.45 * cv2.resize(spread, (width, height), interpolation=cv2.INTER_LINEAR)
    if style.light.weather == "rain":
        image = _rain(image, np.array(style.light.air, np.float32), rng)
    image = np.clip(image, 0, 1)
    blur = imaging.blur * width / 400
    if blur > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    image = np.clip(image * np.array(imaging.white_balance, np.float32), 0, 1) ** np.float32(imaging.gamma)
    image = image + np.float32(imaging.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _soften_edges(radiance: Float32[np.ndarray, "H W 3"], surface: Int32[np.ndarray, "H W"]) -> None:
    """Antialias, in place, the pixels at the borders between surfaces."""
    edge = np.zeros(surface.shape, bool)
    across, down = surface[:, 1:] != surface[:, :-1], surface[1:] != surface[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    blended = cv2.GaussianBlur(np.minimum(radiance, 1.0), (3, 3), 0.6)
    radiance[edge] = blended[edge]


def _rain(image: np.ndarray, air: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    streaks = np.zeros((height, width), np.float32)
    lean, scale = rng.uniform(-0.2, 0.2), width / 400
    for _ in range(int(rng.integers(80, 260))):
        x, y = rng.uniform(0, width), rng.uniform(-10, height)
        long, strength = rng.uniform(6, 22) * scale, rng.uniform(0.08, 0.4)
        cv2.line(streaks, (int(x), int(y)), (int(x + lean * long), int(y + long)), strength, 1)
    part = 0.5 * cv2.GaussianBlur(streaks, (0, 0), 0.6)[..., None]
    return image * (1 - part) + part * np.clip(air * np.float32(1.25) + np.float32(0.03), 0, 1)
