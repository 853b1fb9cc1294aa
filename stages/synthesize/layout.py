"""Static objects along a street: buildings, plants, lamps, signs and fences."""

from dataclasses import dataclass, field

import numpy as np

from .actors import MARGIN
from .classes import MANMADE, VEGETATION
from .ground import Ground
from .materials import FACADE, FOLIAGE, LAMP, METAL, PLASTIC, ROOF, SIGN, WOOD
from .primitives import BOX, CONE, ELLIPSOID, SolidList, Solids
from .shapes import Size, hsv
from .styles import Colour, Range, Style

__all__ = ["build_street", "make_ground"]


def make_ground(style: Style, length: float, rng: np.random.Generator) -> Ground:
    """Draws the bends of the road and the positions of side streets."""
    crossings, x = [], -MARGIN + rng.uniform(20, 60)
    while x < length + MARGIN:
        crossings.append(x)
        x += rng.uniform(*style.layout.crossing_spacing)
    return Ground(
        style.layout,
        rng.uniform(0, 2 * np.pi),
        np.array(crossings, np.float32),
        style.layout.lane_width * rng.uniform(1.1, 1.9),
    )


def build_street(style: Style, ground: Ground, length: float, rng: np.random.Generator) -> Solids:
    """Builds both sides of a street from 120 m before its start to 120 m beyond its end."""
    builder = _Builder(style, ground, rng)
    for side in (-1, 1):
        builder.plots(side, length)
        builder.street_trees(side, length)
        builder.lamps(side, length)
    builder.corners()
    return builder.solids.freeze()


@dataclass
class _Builder:
    """Adds static objects at street coordinates: s along x, n to the left of the centre line."""

    style: Style
    ground: Ground
    rng: np.random.Generator
    solids: SolidList = field(default_factory=SolidList)

    def draw(self, limits: Range) -> float:
        return float(self.rng.uniform(*limits))

    def at(self, s: float, n: float) -> tuple[float, float, float]:
        """Returns x, y and the road's yaw there."""
        place = np.array([s])
        return s, float(self.ground.centre(place)[0]) + n, float(np.arctan(self.ground.slope(place)[0]))

    def height(self, s: float, n: float) -> float:
        x, y, _ = self.at(s, n)
        return 0.0 if self.ground.is_road(np.array([x]), np.array([y]))[0] else self.style.layout.kerb_height

    def clear(self, s: float, reach: float) -> bool:
        """Whether no side street or its sidewalk lies within ``reach`` metres along the street."""
        near = abs(self.ground.crossing_distance(np.array([s]))[0])
        return bool(near > self.ground.half_crossing + self.style.layout.sidewalk_width + reach)

    def block(
        self,
        centre: Size,
        half: Size,
        material: int,
        colour: Colour,
        yaw: float,
        taper: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.solids.add(BOX, centre, half, material, MANMADE, colour, yaw=yaw, taper=taper)

    @property
    def front(self) -> float:
        """Metres from the centre line to the outer edge of the sidewalk."""
        layout = self.style.layout
        return layout.half_road + layout.verge_width + layout.sidewalk_width

    def plots(self, side: int, length: float) -> None:
        """Fills one side with plots: a building, or open ground with plants and a fence."""
        layout, rng = self.style.layout, self.rng
        s = -MARGIN
        while s < length + MARGIN:
            long = self.draw(layout.building_length)
            middle = s + long / 2
            if not self.clear(middle, long / 2):
                s += 3
                continue
            setback = self.draw(layout.setback)
            depth = rng.uniform(8, 16)
            if rng.random() > layout.building_gap:
                self.building(middle, side * (self.front + setback + depth / 2), long / 2 - 0.15, depth / 2)
                if rng.random() < self.style.vegetation.hedges and setback > 1.8:
                    self.hedge(middle, side * (self.front + 0.7), long / 2 - rng.uniform(0.5, 2))
            else:
                self.garden(middle, side, long)
            if rng.random() < layout.second_row:
                far = side * (self.front + layout.setback[1] + rng.uniform(26, 42))
                self.building(middle, far, long / 2, 7.0, taller=1.7)
            self.bushes(middle, side, long, max(setback - 1.2, 0.4))
            s += long + rng.uniform(0, 2.5)

    def corners(self) -> None:
        """Lines the side streets with buildings."""
        layout, rng = self.style.layout, self.rng
        for crossing in self.ground.crossings:
            for side in (-1, 1):
                for across in (-1, 1):
                    n = self.front + layout.setback[1] + 20
                    while n < 110:
                        half = self.draw(layout.building_length) / 2
                        away = self.ground.half_crossing + layout.sidewalk_width + 1 + self.draw(layout.setback) + 6
                        if rng.random() > layout.building_gap:
                            self.building(float(crossing) + across * away, side * (n + half), 6.0, half - 0.2)
                        n += 2 * half + rng.uniform(0, 4)

    def building(self, s: float, n: float, half_long: float, half_deep: float, taller: float = 1.0) -> None:
        """Adds a building with its roof; n is of its middle."""
        look, layout, rng = self.style.materials, self.style.layout, self.rng
        x, y, yaw = self.at(s, n)
        half_high = self.draw(layout.building_height) * taller / 2
        hue = look.facade_hue + rng.normal(0, look.facade_hue_spread)
        colour = hsv(hue, self.draw(look.facade_saturation), self.draw(look.facade_value))
        fill = self.draw(look.window_fill)
        brick = 0.75 if rng.random() < look.brick else 0.25
        params = (self.draw(look.window_pitch), fill, min(fill + 0.1, 0.85), float(rng.integers(0, 500)) + brick)
        base = layout.kerb_height - 0.3
        half = (half_long, half_deep, half_high)
        self.solids.add(BOX, (x, y, base + half_high), half, FACADE, MANMADE, colour, yaw=yaw, params=params)
        top = base + 2 * half_high
        if rng.random() < layout.pitched_roofs:
            rise = min(half_deep, 4.0) * rng.uniform(0.25, 0.45)
            half = (half_long + 0.35, half_deep + 0.4, rise)
            self.block((x, y, top + rise), half, ROOF, look.roof, yaw, (0.15, 0.97))
            return
        trim = hsv(0.1, 0.05, rng.uniform(0.35, 0.85))
        self.block((x, y, top + 0.1), (half_long + 0.15, half_deep + 0.15, 0.28), ROOF, trim, yaw)
        if rng.random() < 0.4:
            self.block((x + rng.uniform(-2, 2), y, top + 1.2), (1.6, 1.4, 1.1), ROOF, look.roof, yaw)
        if half_high > 2.4 and rng.random() < 0.45:
            awning = hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.25, 0.8))
            self.block((x, y, base + 3.2), (half_long * 0.9, half_deep + 0.8, 0.12), PLASTIC, awning, yaw)

    def leaf(self) -> Colour:
        look, vary = self.style.vegetation, self.rng.normal
        return hsv(look.hue + vary(0, 0.02), look.saturation + vary(0, 0.06), look.value + vary(0, 0.05))

    def garden(self, s: float, side: int, long: float) -> None:
        """Adds trees on open ground, with a hedge, a fence or nothing before them."""
        rng = self.rng
        for _ in range(int(rng.integers(1, 5))):
            self.tree(s + rng.uniform(-0.5, 0.5) * long, side * (self.front + rng.uniform(2.0, 12.0)))
        kind = rng.random()
        if kind < self.style.vegetation.hedges:
            self.hedge(s, side * (self.front + 0.6), long / 2)
        elif kind < self.style.vegetation.hedges + 0.3:
            self.fence(s, side * (self.front + 0.3), long / 2)

    def bushes(self, s: float, side: int, long: float, deep: float) -> None:
        for _ in range(int(self.rng.poisson(self.style.vegetation.bushes * long / 10))):
            at, n = s + self.rng.uniform(-0.5, 0.5) * long, side * (self.front + 0.5 + self.rng.uniform(0, deep))
            x, y, _ = self.at(at, n)
            radius = self.rng.uniform(0.35, 0.9)
            middle = self.height(at, n) + radius * 0.55
            self.crown((x, y, middle), (radius, radius * 0.9, radius * 0.8), self.leaf(), 0.6)

    def hedge(self, s: float, n: float, half_long: float) -> None:
        x, y, yaw = self.at(s, n)
        high = self.rng.uniform(0.35, 0.85)
        centre, half = (x, y, self.height(s, n) + high), (max(half_long, 0.5), 0.4, high)
        self.solids.add(BOX, centre, half, FOLIAGE, VEGETATION, self.leaf(), yaw=yaw, taper=(0.02, 0.2))

    def fence(self, s: float, n: float, half_long: float) -> None:
        x, y, yaw = self.at(s, n)
        high = self.rng.uniform(0.4, 1.0)
        colour = hsv(self.rng.uniform(0, 0.15), self.rng.uniform(0, 0.4), self.rng.uniform(0.3, 0.8))
        self.block((x, y, self.height(s, n) + high), (half_long, 0.1, high), WOOD, colour, yaw)

    def street_trees(self, side: int, length: float) -> None:
        look, layout = self.style.vegetation, self.style.layout
        if look.trees <= 0:
            return
        away = layout.verge_width / 2 if layout.verge_width > 0.6 else layout.sidewalk_width * 0.15 + 0.3
        n = layout.half_road + away
        s = -MARGIN + self.rng.uniform(0, 8)
        while s < length + MARGIN:
            if self.clear(s, 2.0):
                self.tree(s, side * n, street=True)
            s += self.rng.uniform(0.7, 1.4) * 10 / look.trees

    def tree(self, s: float, n: float, *, street: bool = False) -> None:
        """Adds a conifer, a palm or a broad-leaved tree."""
        look, rng = self.style.vegetation, self.rng
        if not self.clear(s, 0.0):
            return
        x, y, _ = self.at(s, n)
        foot, kind = self.height(s, n), rng.random()
        if kind < look.conifers:
            self.conifer(x, y, foot)
        elif kind < look.conifers + look.palms:
            self.palm(x, y, foot)
        else:
            self.broadleaf(x, y, foot, 0.8 if street else 1.0)

    def trunk(self, x: float, y: float, foot: float, radius: float, high: float) -> None:
        bark = hsv(self.rng.uniform(0.05, 0.1), 0.4, self.rng.uniform(0.15, 0.36))
        half = (radius, radius, high / 2 + 0.05)
        self.solids.add(CONE, (x, y, foot + high / 2 - 0.05), half, WOOD, VEGETATION, bark, taper=(0.35, 0.35))

    def crown(self, centre: Size, half: Size, colour: Colour, cut: float, yaw: float = 0.0) -> None:
        self.solids.add(ELLIPSOID, centre, half, FOLIAGE, VEGETATION, colour, cut=cut, yaw=yaw)

    def conifer(self, x: float, y: float, foot: float) -> None:
        high, colour = self.rng.uniform(5, 11), self.leaf()
        self.trunk(x, y, foot, 0.16, high * 0.3)
        for level in range(3):
            radius = high * (0.26 - 0.06 * level)
            centre, half = (x, y, foot + high * (0.32 + 0.25 * level)), (radius, radius, high * 0.18)
            shade = _shaded(colour, 0.85 + 0.1 * level)
            self.solids.add(CONE, centre, half, FOLIAGE, VEGETATION, shade, taper=(0.92, 0.92))

    def palm(self, x: float, y: float, foot: float) -> None:
        high, colour = self.rng.uniform(5, 9), self.leaf()
        self.trunk(x, y, foot, 0.2, high)
        for turn in range(5):
            yaw = turn * 2 * np.pi / 5 + self.rng.normal(0, 0.2)
            reach = self.rng.uniform(0.9, 1.4)
            top = foot + high - 0.1 + self.rng.normal(0, 0.15)
            centre = (x + reach * np.cos(yaw), y + reach * np.sin(yaw), top)
            self.crown(centre, (reach * 1.15, 0.42, 0.32), colour, 0.5, yaw)

    def broadleaf(self, x: float, y: float, foot: float, size: float) -> None:
        rng, look = self.rng, self.style.vegetation
        high, radius, colour = self.draw(look.trunk), self.draw(look.crown) * size, self.leaf()
        self.trunk(x, y, foot, rng.uniform(0.1, 0.2), high + radius * 0.4)
        middle = foot + high + radius * 0.65
        self.crown((x, y, middle), (radius, radius, radius * rng.uniform(0.75, 1.05)), colour, 0.75)
        for _ in range(int(rng.integers(2, 5))):
            yaw, part = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.5, 0.75)
            shade, out = rng.uniform(0.82, 1.15), 0.65 * radius
            centre = (x + np.cos(yaw) * out, y + np.sin(yaw) * out, middle + rng.uniform(-0.45, 0.5) * radius)
            self.crown(centre, (part, part, part * 0.85), _shaded(colour, shade), 0.7)

    def lamps(self, side: int, length: float) -> None:
        """Adds street lamps, with a sign, a bin or a box of switchgear at some of them, and traffic lights."""
        layout, rng = self.style.layout, self.rng
        n = side * (layout.half_road + 0.45)
        s = -MARGIN + rng.uniform(0, layout.lamp_spacing)
        while s < length + MARGIN:
            if self.clear(s, 1.0):
                self.lamp(s, n, side)
                if rng.random() < 0.4:
                    self.sign(s + rng.uniform(3, 9), n)
                if rng.random() < 0.35:
                    self.locker(s + rng.uniform(-9, -3), side * (self.front - 0.3))
            s += layout.lamp_spacing * rng.uniform(0.9, 1.1)
        for crossing in self.ground.crossings:
            self.traffic_light(float(crossing) - side * (self.ground.half_crossing + 0.8), n, side)

    def pole(self, x: float, y: float, foot: float, radius: float, high: float, colour: Colour) -> None:
        centre, half = (x, y, foot + high / 2), (radius, radius, high / 2)
        self.solids.add(CONE, centre, half, METAL, MANMADE, colour, taper=(0.3, 0.3))

    def lamp(self, s: float, n: float, side: int) -> None:
        x, y, yaw = self.at(s, n)
        foot, high, grey = self.height(s, n), self.rng.uniform(6, 8.5), hsv(0.6, 0.05, self.rng.uniform(0.15, 0.5))
        self.pole(x, y, foot, 0.1, high, grey)
        self.block((x, y - side * 0.8, foot + high), (0.05, 0.85, 0.04), METAL, grey, yaw)
        self.block((x, y - side * 1.6, foot + high - 0.06), (0.16, 0.4, 0.07), LAMP, (0.75, 0.75, 0.72), yaw)

    def sign(self, s: float, n: float) -> None:
        if not self.clear(s, 0.5):
            return
        x, y, yaw = self.at(s, n)
        foot = self.height(s, n)
        self.pole(x, y, foot, 0.04, 2.7, (0.5, 0.5, 0.5))
        colour = hsv(float(self.rng.choice([0.0, 0.13, 0.33, 0.6])), 0.85, 0.75)
        self.block((x - 0.05, y, foot + 2.5), (0.02, 0.36, 0.36), SIGN, colour, yaw)

    def locker(self, s: float, n: float) -> None:
        if not self.clear(s, 1.0):
            return
        x, y, yaw = self.at(s, n)
        high = self.rng.uniform(0.4, 0.8)
        colour = hsv(self.rng.random(), self.rng.uniform(0, 0.6), self.rng.uniform(0.2, 0.7))
        half = (self.rng.uniform(0.25, 0.6), 0.25, high)
        self.block((x, y, self.height(s, n) + high), half, METAL, colour, yaw)

    def traffic_light(self, s: float, n: float, side: int) -> None:
        x, y, yaw = self.at(s, n)
        foot = self.style.layout.kerb_height
        self.pole(x, y, foot, 0.08, 4.6, (0.2, 0.2, 0.2))
        self.block((x, y - side * 0.3, foot + 4.2), (0.14, 0.17, 0.45), PLASTIC, (0.1, 0.1, 0.1), yaw)


def _shaded(colour: Colour, shade: float) -> Colour:
    return colour[0] * shade, colour[1] * shade, colour[2] * shade
