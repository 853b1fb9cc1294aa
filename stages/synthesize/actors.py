"""Annotated actors (vehicles, people, cones, barriers): initial position, motion, and geometry."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from . import classes
from .ground import Ground
from .primitives import SolidList, Solids
from .shapes import add_barrier, add_cone, add_person, add_vehicle
from .styles import Style

__all__ = ["MARGIN", "Actors", "keep_side", "populate"]

MARGIN = 120.0  # metres built beyond both ends of the drive
_EGO_GAP = 12.0  # metres kept free in front of and behind the centre of the ego vehicle
_ROOM = {
    "car": (2.6, 2.6),
    "truck": (4.4, 4.4),
    "bus": (6.2, 6.2),
    "trailer": (5.8, 14.8),
    "construction": (3.0, 3.0),
    "motorcycle": (1.1, 1.1),
    "bicycle": (1.0, 1.0),
}
"""Largest distance in metres from the centre of a vehicle kind to its rear and to its front (or its truck's)."""


@dataclass(frozen=True, eq=False)
class Actors:
    """A actors in street coordinates: s along x, n to the left of the centre line; metres, seconds, radians."""

    label: Int64[np.ndarray, " A"]
    size: Float64[np.ndarray, "A 3"]  # width, length, height
    s: Float64[np.ndarray, " A"]
    n: Float64[np.ndarray, " A"]
    heading: Float64[np.ndarray, " A"]  # against the direction of the street
    speed_s: Float64[np.ndarray, " A"]
    speed_n: Float64[np.ndarray, " A"]
    reach_n: Float64[np.ndarray, " A"]  # pedestrians who cross stop at this distance from the centre line
    solids: Solids  # in the actors' own frames
    first: float  # x where actors that leave at the other end re-enter
    span: float

    def poses(self, ground: Ground, time: Float64[np.ndarray, "#A"]) -> Float64[np.ndarray, "4 A"]:
        """Returns x, y, z of each actor's base and its yaw, at one time or at a time per actor."""
        x = self.first + np.mod(self.s - self.first + self.speed_s * time, self.span)
        n = self.n + self.speed_n * time
        n = np.where(self.speed_n == 0, n, np.clip(n, -self.reach_n, self.reach_n))
        y = ground.centre(x) + n
        z = np.where(ground.is_road(x, y), 0.0, ground.layout.kerb_height)
        return np.stack([x, y, z, np.arctan(ground.slope(x)) + self.heading])

    def velocities(self, ground: Ground, time: float) -> Float64[np.ndarray, "A 2"]:
        """Returns the velocity of each actor along x and y."""
        ahead, behind = (self.poses(ground, np.array([time + dt]))[:2] for dt in (0.05, -0.05))
        velocity = (ahead - behind).T / 0.1
        velocity[np.abs(velocity).max(axis=1) > 50] = 0.0  # the jump at re-entry
        return velocity


@dataclass
class _Crowd:
    """Collects actors."""

    style: Style
    rng: np.random.Generator
    solids: SolidList = field(default_factory=SolidList)
    rows: list[tuple] = field(default_factory=list)

    def enter(
        self,
        label: int,
        size: tuple[float, float, float],
        s: float,
        n: float,
        heading: float,
        motion: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:
        self.rows.append((label, size, s, n, heading, *motion))

    def vehicle(self, kind: str, s: float, n: float, heading: float, speed: float = 0.0) -> None:
        """Adds a vehicle (``trailer``: with the truck that pulls it)."""
        rng, saturation = self.rng, self.style.traffic.paint_saturation
        label, size = add_vehicle(self.solids, len(self.rows), kind, rng, saturation)
        self.enter(label, size, s, n, heading, (speed, 0.0, 0.0))
        if kind == "trailer":
            label, truck = add_vehicle(self.solids, len(self.rows), "truck", rng, saturation)
            ahead = (size[1] + truck[1]) / 2 + 0.3
            place = s + ahead * np.cos(heading), n + ahead * np.sin(heading)
            self.enter(label, truck, *place, heading, (speed, 0.0, 0.0))

    def person(self, label: int, s: float, n: float, heading: float, motion: tuple[float, float, float]) -> None:
        size = add_person(self.solids, len(self.rows), label, self.rng)
        self.enter(label, size, s, n, heading, motion)

    def kind(self) -> str:
        names, weights = zip(*self.style.traffic.vehicle_mix, strict=True)
        share = np.array(weights) / sum(weights)
        return str(self.rng.choice(names, p=share))


def populate(style: Style, ground: Ground, length: float, cruise_speed: float, rng: np.random.Generator) -> Actors:
    """Fills a street with traffic, parked vehicles, construction sites and people.

    All vehicles of a lane have one speed, ``cruise_speed`` in the ego lane, where none starts within 12 m of s = 0: no
    vehicle collides with another, or with an ego vehicle that starts there.
    """
    crowd = _Crowd(style, rng)
    sites = _building_sites(crowd, ground, length)
    _moving(crowd, length, cruise_speed)
    _parked(crowd, ground, length, sites)
    _side_streets(crowd, ground)
    _people(crowd, ground, length)
    table = np.array([(label, *size, *rest) for label, size, *rest in crowd.rows], np.float64).reshape(-1, 10)
    return Actors(
        label=table[:, 0].astype(np.int64),
        size=table[:, 1:4],
        s=table[:, 4],
        n=table[:, 5],
        heading=table[:, 6],
        speed_s=table[:, 7],
        speed_n=table[:, 8],
        reach_n=table[:, 9],
        solids=crowd.solids.freeze(),
        first=-MARGIN,
        span=length + 2 * MARGIN,
    )


def keep_side(style: Style) -> int:
    """Returns the sign of n on the side where the ego vehicle drives: -1 right, 1 left."""
    return -1 if style.layout.traffic_side == "right" else 1


def _moving(crowd: _Crowd, length: float, cruise_speed: float) -> None:
    style, rng = crowd.style, crowd.rng
    keep = keep_side(style)
    for direction in (1, -1):
        for lane in range(style.layout.lanes):
            ego = direction == 1 and lane == style.layout.lanes - 1
            speed = direction * (cruise_speed if ego else rng.uniform(*style.traffic.speed))
            n = keep * direction * (lane + 0.5) * style.layout.lane_width
            free = -MARGIN + rng.uniform(5, 20)
            while free < length + MARGIN - 30:
                kind = crowd.kind()
                kind = "car" if kind == "construction" else kind
                before, after = _ROOM[kind][::direction]
                if ego and free < _EGO_GAP and free + before + after > -_EGO_GAP:
                    free = _EGO_GAP + rng.uniform(0, 12)
                crowd.vehicle(kind, free + before, n, 0.0 if direction == 1 else np.pi, speed)
                free += before + after + 5 + rng.exponential(100 / max(style.traffic.moving, 0.05))


def _parked(crowd: _Crowd, ground: Ground, length: float, sites: list[tuple[int, float]]) -> None:
    layout, rng, keep = crowd.style.layout, crowd.rng, keep_side(crowd.style)
    if not layout.parking:
        return
    for side in (-1, 1):
        direction = 1 if side == keep else -1
        free = -MARGIN + rng.uniform(0, 8)
        while free < length + MARGIN - 30:
            kind = crowd.kind()
            before, after = _ROOM[kind][::direction]
            s, half = free + before, (before + after) / 2
            middle = free + half
            near_crossing = abs(ground.crossing_distance(np.array([middle]))[0]) < ground.half_crossing + half + 9
            in_site = any(side == other and abs(middle - at) < half + 13 for other, at in sites)
            if near_crossing or in_site or rng.random() > crowd.style.traffic.parked:
                free += rng.uniform(5, 9)
                continue
            heading = (0.0 if direction == 1 else np.pi) + rng.normal(0, 0.012)
            crowd.vehicle(kind, s, side * (layout.half_road - 1.15), heading)
            free += before + after + rng.uniform(0.5, 2.5)


def _side_streets(crowd: _Crowd, ground: Ground) -> None:
    rng, layout = crowd.rng, crowd.style.layout
    for crossing in ground.crossings:
        for side in (-1, 1):
            free = layout.half_road + layout.sidewalk_width + 3
            lane = keep_side(crowd.style) * side * ground.half_crossing * 0.45
            for _ in range(int(rng.integers(0, 4))):
                kind = crowd.kind()
                behind, front = _ROOM[kind]
                heading = -side * np.pi / 2 + rng.normal(0, 0.02)
                crowd.vehicle(kind, float(crossing) + lane, side * (free + front), heading)
                free += front + behind + rng.uniform(1.5, 8)


def _building_sites(crowd: _Crowd, ground: Ground, length: float) -> list[tuple[int, float]]:
    """Closes stretches of the roadside with cones and barriers; returns side and middle of each stretch."""
    rng, layout = crowd.rng, crowd.style.layout
    sites: list[tuple[int, float]] = []
    for _ in range(int(rng.poisson(crowd.style.traffic.works * (length + MARGIN) / 100))):
        side, s = int(rng.choice([-1, 1])), rng.uniform(-20, length + 60)
        if abs(ground.crossing_distance(np.array([s]))[0]) < ground.half_crossing + 16 or any(
            abs(s - at) < 40 for _, at in sites
        ):
            continue
        sites.append((side, s))
        edge = layout.half_road - (2.1 if layout.parking else 0.15)
        middle = layout.half_road + (-1.0 if layout.parking else 1.0)
        for at in np.arange(-9.0, 9.1, 3.0):
            n = side * (edge + rng.uniform(0, 0.15))
            if rng.random() < 0.75:
                crowd.enter(classes.CONE, add_cone(crowd.solids, len(crowd.rows), rng), s + at, n, 0.0)
        for end in (-11.0, 11.0):
            size = add_barrier(crowd.solids, len(crowd.rows), rng)
            crowd.enter(classes.BARRIER, size, s + end, side * (middle + 0.2), rng.normal(0, 0.05))
        for at in (-3.5, 0.5, 4.0)[: int(rng.integers(1, 4))]:
            size = add_barrier(crowd.solids, len(crowd.rows), rng)
            crowd.enter(classes.BARRIER, size, s + at, side * (layout.half_road + 2.2), np.pi / 2)
        if rng.random() < 0.7:
            crowd.vehicle("construction", s + rng.uniform(-3, 3), side * (middle + 0.3), float(rng.choice([0, np.pi])))
        for _ in range(int(rng.integers(0, 3))):
            at, n = s + rng.uniform(5.5, 9.5) * rng.choice([-1, 1]), side * middle
            crowd.person(classes.CONSTRUCTION_WORKER, at, n, rng.uniform(0, 2 * np.pi), (0.0, 0.0, 0.0))
    return sites


def _people(crowd: _Crowd, ground: Ground, length: float) -> None:
    rng, layout, traffic = crowd.rng, crowd.style.layout, crowd.style.traffic
    near = layout.half_road + layout.verge_width
    for side in (-1, 1):
        for _ in range(int(rng.poisson(traffic.pedestrians * (length + 2 * MARGIN) / 100))):
            label = classes.CHILD if rng.random() < traffic.children else classes.ADULT
            s = rng.uniform(-MARGIN, length + MARGIN)
            n = side * (near + layout.sidewalk_width * rng.uniform(0.15, 0.85))
            speed = float(rng.choice([-1, 1]) * rng.uniform(0.7, 1.6)) if rng.random() < 0.7 else 0.0
            heading = rng.uniform(0, 2 * np.pi) if speed == 0 else (0.0 if speed > 0 else np.pi)
            crowd.person(label, s, n, heading, (speed, 0.0, 0.0))
    for crossing in ground.crossings:
        for _ in range(int(rng.poisson(traffic.pedestrians / 4))):
            turn, speed = float(rng.choice([-1, 1])), rng.uniform(0.8, 1.5)
            s = float(crossing) + float(rng.choice([-1, 1])) * (ground.half_crossing + 1.8) + rng.uniform(-0.8, 0.8)
            start = -turn * rng.uniform(0, 60 * speed)
            crowd.person(classes.ADULT, s, start, turn * np.pi / 2, (0.0, turn * speed, near + 0.5))
