"""Solids, from which all geometry is built, and their intersection with rays.

Three kinds, each upright and rotated about z: a box with optionally sloped sides (cabins, roofs), an ellipsoid with an
optionally ragged rim (crowns), and a round column that may taper to a cone. Solids are stored as arrays, one column per
property, so that moving, culling and shading are vectorised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, UInt8

from .styles import Colour
from .texture_noise import Vectors, noise3

__all__ = ["BOX", "CONE", "ELLIPSOID", "SolidList", "Solids", "intersect", "local_normals"]

BOX, ELLIPSOID, CONE = 0, 1, 2
_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
_EPS = np.float32(1e-7)


@dataclass(frozen=True, eq=False)
class Solids:
    """N solids. Positions are in metres, in the world frame or in that of the actor they belong to."""

    kind: UInt8[np.ndarray, " N"]
    centre: Float32[np.ndarray, "N 3"]
    half: Float32[np.ndarray, "N 3"]  # half sizes along the solid's own axes
    yaw: Float32[np.ndarray, " N"]
    taper: Float32[np.ndarray, "N 2"]  # shrinkage of the top relative to the base (x, y), 0 to 1
    cut: Float32[np.ndarray, " N"]  # raggedness of an ellipsoid's rim, 0 to 1
    material: UInt8[np.ndarray, " N"]
    label: UInt8[np.ndarray, " N"]  # raw lidarseg ids
    colour: Float32[np.ndarray, "N 3"]
    params: Float32[np.ndarray, "N 4"]  # parameters of the material, see ``materials``
    actor: Int32[np.ndarray, " N"]  # row of the actor, -1 for static solids

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, index: np.ndarray) -> "Solids":
        """Returns the chosen solids (any numpy index)."""
        return Solids(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    def corners(self) -> Float32[np.ndarray, "N 8 3"]:
        """Returns the corners of the boxes around the solids."""
        local = _CORNERS[None] * self.half[:, None]
        cos, sin = np.cos(self.yaw)[:, None], np.sin(self.yaw)[:, None]
        x, y = local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos
        return np.stack([x, y, local[..., 2]], axis=-1) + self.centre[:, None]

    def placed(
        self,
        x: Float[np.ndarray, " A"],
        y: Float[np.ndarray, " A"],
        z: Float[np.ndarray, " A"],
        yaw: Float[np.ndarray, " A"],
    ) -> "Solids":
        """Moves solids given in their actors' frames into the world, by the pose of each actor (A of them)."""
        angle = yaw[self.actor].astype(np.float32)
        cos, sin = np.cos(angle), np.sin(angle)
        centre = np.stack(
            [
                x[self.actor] + self.centre[:, 0] * cos - self.centre[:, 1] * sin,
                y[self.actor] + self.centre[:, 0] * sin + self.centre[:, 1] * cos,
                z[self.actor] + self.centre[:, 2],
            ],
            axis=1,
        )
        return replace(self, centre=centre.astype(np.float32), yaw=self.yaw + angle)

    @staticmethod
    def join(parts: "Sequence[Solids]") -> "Solids":
        """Concatenates the solids of ``parts``."""
        return Solids(
            **{item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Solids)}
        )


@dataclass
class SolidList:
    """Collects solids one by one; ``freeze`` turns them into arrays."""

    rows: list[tuple] = field(default_factory=list)

    def add(
        self,
        kind: int,
        centre: Sequence[float],
        half: Sequence[float],
        material: int,
        label: int,
        colour: Colour,
        *,
        yaw: float = 0.0,
        taper: tuple[float, float] = (0.0, 0.0),
        cut: float = 0.0,
        params: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
        actor: int = -1,
    ) -> None:
        """Adds one solid; the arguments are the columns of ``Solids``."""
        self.rows.append((kind, centre, half, yaw, taper, cut, material, label, colour, params, actor))

    def freeze(self) -> Solids:
        """Returns the collected solids."""
        columns = list(zip(*self.rows, strict=True)) if self.rows else [()] * 11
        types = {"kind": np.uint8, "material": np.uint8, "label": np.uint8, "actor": np.int32}
        widths = {"centre": (3,), "half": (3,), "taper": (2,), "colour": (3,), "params": (4,)}
        made = {}
        for item, column in zip(fields(Solids), columns, strict=True):
            array = np.array(column, types.get(item.name, np.float32))
            made[item.name] = array.reshape(len(column), *widths.get(item.name, ()))
        return Solids(**made)


def intersect(
    solids: Solids, index: int, origin: Float32[np.ndarray, "3 #h #w"], direction: Float32[np.ndarray, "3 h w"]
) -> Float32[np.ndarray, "h w"]:
    """Returns where rays enter one solid, in multiples of their directions; inf if they miss it or start inside."""
    cx, cy, cz = solids.centre[index]
    cos, sin = np.cos(solids.yaw[index]), np.sin(solids.yaw[index])
    ox, oy, oz = origin[0] - cx, origin[1] - cy, origin[2] - cz
    local_origin = (ox * cos + oy * sin, oy * cos - ox * sin, oz)
    dx, dy, dz = direction
    local_direction = (dx * cos + dy * sin, dy * cos - dx * sin, dz)
    half, taper = solids.half[index], solids.taper[index]
    if solids.kind[index] == BOX:
        return _meet_box(local_origin, local_direction, half, taper)
    if solids.kind[index] == CONE:
        return _meet_cone(local_origin, local_direction, half, taper)
    return _meet_ellipsoid(local_origin, local_direction, half, solids.cut[index])


def _safe(value: np.ndarray) -> np.ndarray:
    return np.where(np.abs(value) < _EPS, _EPS, value)


def _meet_box(o: tuple, d: tuple, half: np.ndarray, taper: np.ndarray) -> np.ndarray:
    inverse = 1 / _safe(d[2])
    a, b = (-half[2] - o[2]) * inverse, (half[2] - o[2]) * inverse
    enter, leave = np.minimum(a, b), np.maximum(a, b)
    for axis in (0, 1):
        if taper[axis] == 0:
            inverse = 1 / _safe(d[axis])
            a, b = (-half[axis] - o[axis]) * inverse, (half[axis] - o[axis]) * inverse
            np.maximum(enter, np.minimum(a, b), out=enter)
            np.minimum(leave, np.maximum(a, b), out=leave)
            continue
        lean = half[axis] * taper[axis] / (2 * half[2])
        reach = half[axis] * (1 - taper[axis] / 2)
        for side in (-1, 1):
            rate = _safe(side * d[axis] + lean * d[2])
            crossing = (reach - (side * o[axis] + lean * o[2])) / rate
            enter = np.where(rate < 0, np.maximum(enter, crossing), enter)
            leave = np.where(rate > 0, np.minimum(leave, crossing), leave)
    return np.where((leave > enter) & (enter > 0), enter, np.float32(np.inf)).astype(np.float32)


def _meet_cone(o: tuple, d: tuple, half: np.ndarray, taper: np.ndarray) -> np.ndarray:
    """Column with base radii half[0], half[1] that tapers linearly, by taper[0], towards its top."""
    x, y, dx, dy = o[0] / half[0], o[1] / half[1], d[0] / half[0], d[1] / half[1]
    lean = taper[0] / (2 * half[2])
    radius, rate = 1 - taper[0] / 2 - lean * o[2], -lean * d[2]
    a = dx * dx + dy * dy - rate * rate
    b = x * dx + y * dy - radius * rate
    c = x * x + y * y - radius * radius
    a = _safe(a)
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    real = b * b - a * c > 0
    best = np.full(real.shape, np.inf, np.float32)
    for sign in (-1, 1):
        t = (-b + sign * root) / a
        z = o[2] + t * d[2]
        good = real & (t > 0) & (np.abs(z) <= half[2]) & (radius + t * rate >= 0)
        best = np.where(good & (t < best), t, best)
    for end in (-1, 1):
        t = (end * half[2] - o[2]) / _safe(d[2])
        width = 1 - taper[0] * (end + 1) / 2
        good = (t > 0) & ((x + t * dx) ** 2 + (y + t * dy) ** 2 <= width * width)
        best = np.where(good & (t < best), t, best)
    inside = (c < 0) & (np.abs(o[2]) < half[2]) & (radius > 0)
    return np.where(inside, np.float32(np.inf), best).astype(np.float32)


def _meet_ellipsoid(o: tuple, d: tuple, half: np.ndarray, cut: np.float32) -> np.ndarray:
    x, y, z = o[0] / half[0], o[1] / half[1], o[2] / half[2]
    dx, dy, dz = d[0] / half[0], d[1] / half[1], d[2] / half[2]
    a = dx * dx + dy * dy + dz * dz
    b = x * dx + y * dy + z * dz
    c = x * x + y * y + z * z - 1
    inner = b * b - a * c
    hit = (inner > 0) & (c > 0) & (b < 0)
    root = np.sqrt(np.maximum(inner, 0))
    t = (-b - root) / a
    if cut > 0:
        middle = -b / a
        ragged = noise3(o[0] + middle * d[0], o[1] + middle * d[1], o[2] + middle * d[2], 22.0, 4)
        hit &= root / np.sqrt(a) > cut * (np.float32(0.45) + np.float32(0.3) * ragged)
    return np.where(hit, t, np.float32(np.inf)).astype(np.float32)


def local_normals(solids: Solids, index: Int[np.ndarray, " P"], local: Vectors) -> Vectors:
    """Returns outward unit normals, in the solids' own axes, at points on the surface of solid ``index`` of each."""
    half, taper, kind = solids.half[index], solids.taper[index], solids.kind[index]
    normal = local / (half * half)  # ellipsoids
    lean = half[:, :2] * taper / (2 * half[:, 2:])
    width = 1 - taper * (local[:, 2:] / half[:, 2:] + 1) / 2
    over = (
        np.stack(
            [
                np.abs(local[:, 0]) / half[:, 0] - width[:, 0],
                np.abs(local[:, 1]) / half[:, 1] - width[:, 1],
                np.abs(local[:, 2]) / half[:, 2] - 1,
            ],
            axis=1,
        )
        * half
    )
    face = np.argmax(over, axis=1)
    side = np.sign(local)
    for axis in (0, 1):
        chosen = (kind == BOX) & (face == axis)
        normal[chosen] = 0
        normal[chosen, axis] = side[chosen, axis]
        normal[chosen, 2] = lean[chosen, axis]
    column = kind == CONE
    normal[column, :2] = local[column, :2] / half[column, :2] ** 2
    normal[column, 2] = (lean[:, 0] * width[:, 0] / half[:, 0])[column]
    capped = ((kind == BOX) & (face == 2)) | (column & (np.abs(local[:, 2]) > half[:, 2] * 0.9999))
    normal[capped] = 0
    normal[capped, 2] = side[capped, 2]
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9).astype(np.float32)
