"""Vehicles, people and road furniture as solids in their own frames: x forward, y left, z up, the base at z = 0."""

import colorsys
from collections.abc import Callable
from functools import partial

import numpy as np

from . import classes
from .materials import CLOTH, GLASS, HEADLIGHT, METAL, PAINT, PLASTIC, SKIN, STRIPES, TAILLIGHT, TYRE
from .primitives import BOX, CONE, ELLIPSOID, SolidList
from .styles import Colour

__all__ = ["Size", "VEHICLE_KINDS", "add_barrier", "add_cone", "add_person", "add_vehicle", "hsv"]

Size = tuple[float, float, float]
_DARK: Colour = (0.05, 0.05, 0.055)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Returns a colour from hue (any number, turns), saturation and value (clipped to [0, 1])."""
    return colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))


class _Builder:
    """Adds boxes, balls and columns of one actor."""

    def __init__(self, solids: SolidList, actor: int, label: int) -> None:
        self._add = partial(solids.add, actor=actor, label=label)

    def box(
        self, centre: Size, half: Size, material: int, colour: Colour, taper: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        self._add(BOX, centre, half, material=material, colour=colour, taper=taper)

    def ball(self, centre: Size, half: Size, material: int, colour: Colour) -> None:
        self._add(ELLIPSOID, centre, half, material=material, colour=colour)

    def column(
        self, centre: Size, radius: float, half_height: float, material: int, colour: Colour, taper: float
    ) -> None:
        half = (radius, radius, half_height)
        self._add(CONE, centre, half, material=material, colour=colour, taper=(taper, taper))

    def wheels(self, xs: tuple[float, ...], half_width: float, radius: float = 0.34) -> None:
        for x in xs:
            for side in (-1, 1):
                self.ball((x, side * (half_width - 0.08), radius), (radius, 0.13, radius), TYRE, _DARK)

    def lights(self, half_length: float, half_width: float, front: float, rear: float) -> None:
        for side in (-1, 1):
            y = side * half_width * 0.76
            self.box((half_length, y, front), (0.03, 0.19, 0.09), HEADLIGHT, (0.9, 0.9, 0.85))
            self.box((-half_length, y, rear), (0.03, 0.15, 0.11), TAILLIGHT, (0.62, 0.05, 0.05))
        self.box((-half_length, 0.0, rear - 0.18), (0.02, 0.26, 0.06), METAL, (0.85, 0.85, 0.8))


def _paint(rng: np.random.Generator, saturation: float) -> Colour:
    if rng.random() < 0.45:
        return hsv(0.6, 0.05 * saturation, float(rng.choice([0.06, 0.2, 0.4, 0.6, 0.82, 0.92])))
    return hsv(rng.random(), rng.uniform(0.25, 1.0) * saturation, rng.uniform(0.12, 0.85))


def _car(make: _Builder, rng: np.random.Generator, saturation: float) -> Size:
    tall = float(rng.choice([1.0, 1.18, 1.4], p=[0.55, 0.3, 0.15]))  # saloon, SUV, van
    hl, hw = rng.uniform(2.05, 2.4), rng.uniform(0.86, 0.95)
    paint, body = _paint(rng, saturation), 0.3 * tall
    glass = hsv(0.58, 0.2, rng.uniform(0.05, 0.22))
    make.box((0.0, 0.0, 0.27 + body), (hl, hw, body), PAINT, paint, (0.05, 0.08))
    make.box((0.0, 0.0, 0.33), (hl + 0.04, hw * 0.97, 0.1), PLASTIC, _DARK)
    top = 0.27 + 2 * body
    cabin, height = (0.5 if tall < 1.1 else 0.66) * hl, 0.28 * tall
    back = -0.14 * hl if tall < 1.1 else -0.24 * hl
    lean = 0.36 if tall < 1.3 else 0.16
    make.box((back, 0.0, top + height), (cabin + 0.12, hw * 0.93, height), GLASS, glass, (lean, 0.2))
    roof = (cabin + 0.12) * (0.65 if tall < 1.3 else 0.85)
    make.box((back, 0.0, top + 2 * height + 0.01), (roof, hw * 0.76, 0.035), PAINT, paint)
    if tall > 1.3:
        hold = (cabin * 0.6, hw * 0.95, height * 0.98)
        make.box((back - 0.4 * cabin, 0.0, top + height), hold, PAINT, paint, (0.1, 0.2))
    make.wheels((-0.62 * hl, 0.62 * hl), hw)
    make.lights(hl, hw, 0.27 + 1.25 * body, 0.27 + 1.4 * body)
    return 2 * hw + 0.1, 2 * hl + 0.08, top + 2 * height + 0.045


def _bus(make: _Builder, rng: np.random.Generator, saturation: float) -> Size:
    double = rng.random() < 0.3
    hl, hw, hh = rng.uniform(4.8, 6.0), 1.27, 1.95 if double else 1.38
    paint, glass = hsv(rng.random(), max(0.5 * saturation, 0.2), rng.uniform(0.4, 0.9)), (0.06, 0.07, 0.09)
    make.box((0.0, 0.0, 0.35 + hh), (hl, hw, hh), PAINT, paint)
    make.box((0.0, 0.0, 0.35 + 2 * hh), (hl * 0.97, hw * 0.95, 0.08), PAINT, (0.8, 0.8, 0.8))
    for level in (1.75, 3.3) if double else (1.85,):
        make.box((-0.1, 0.0, level), (hl - 0.5, hw + 0.015, 0.42), GLASS, glass)
    make.box((hl - 0.2, 0.0, 1.75), (0.22, hw * 0.92, 0.62), GLASS, glass)
    make.box((-hl + 0.2, 0.0, 1.95), (0.215, hw * 0.75, 0.35), GLASS, glass)
    make.box((hl - 0.2, 0.0, 0.35 + 2 * hh - 0.25), (0.24, hw * 0.7, 0.14), PLASTIC, (0.85, 0.55, 0.1))
    make.wheels((-0.55 * hl, 0.6 * hl), hw, 0.48)
    make.lights(hl, hw, 0.75, 0.95)
    return 2 * hw + 0.1, 2 * hl + 0.1, 0.43 + 2 * hh


def _truck(make: _Builder, rng: np.random.Generator, saturation: float) -> Size:
    hl, hw, hh = rng.uniform(3.2, 4.2), rng.uniform(1.1, 1.25), rng.uniform(0.95, 1.25)
    paint, cargo = _paint(rng, saturation), hsv(rng.random(), 0.25 * saturation, rng.uniform(0.55, 0.95))
    cab = 0.95
    make.box((hl - cab, 0.0, 1.42), (cab, hw * 0.95, 0.92), PAINT, paint, (0.14, 0.06))
    make.box((hl - cab + 0.03, 0.0, 1.82), (cab * 0.93, hw * 0.965, 0.33), GLASS, (0.06, 0.07, 0.08), (0.1, 0.06))
    make.box((-cab, 0.0, 0.95 + hh), (hl - cab - 0.12, hw, hh), PAINT, cargo)
    make.box((-0.2, 0.0, 0.72), (hl - 0.25, hw * 0.7, 0.18), METAL, (0.12, 0.12, 0.12))
    make.wheels((-0.62 * hl, 0.68 * hl), hw, 0.46)
    make.lights(hl, hw * 0.95, 0.8, 0.8)
    return 2 * hw + 0.1, 2 * hl + 0.06, max(0.95 + 2 * hh, 2.34)


def _trailer(make: _Builder, rng: np.random.Generator, saturation: float) -> Size:
    hl, hw, hh = rng.uniform(4.2, 5.6), 1.25, rng.uniform(1.1, 1.4)
    cargo = hsv(rng.random(), 0.5 * saturation, rng.uniform(0.35, 0.9))
    make.box((0.0, 0.0, 1.15 + hh), (hl, hw, hh), METAL, cargo)
    make.box((0.0, 0.0, 0.98), (hl, hw * 0.6, 0.16), METAL, (0.12, 0.12, 0.12))
    make.wheels((-0.8 * hl, -0.58 * hl, -0.36 * hl), hw, 0.48)
    make.lights(hl, hw, 1.0, 1.0)
    return 2 * hw + 0.1, 2 * hl + 0.06, 1.15 + 2 * hh


def _construction(make: _Builder, rng: np.random.Generator, saturation: float) -> Size:
    paint = hsv(rng.uniform(0.09, 0.15), 0.85, rng.uniform(0.7, 0.95))
    for side in (-1, 1):
        make.box((-1.0, side * 0.95, 0.42), (1.75, 0.27, 0.42), TYRE, _DARK, (0.15, 0.0))
    make.box((-1.35, 0.0, 1.35), (1.5, 1.15, 0.5), PAINT, paint, (0.06, 0.04))
    make.box((-0.65, 0.55, 2.1), (0.7, 0.5, 0.75), GLASS, (0.1, 0.12, 0.13), (0.15, 0.1))
    make.box((-0.7, 0.55, 2.87), (0.72, 0.52, 0.05), PAINT, paint)
    make.box((0.6, -0.35, 2.2), (0.4, 0.17, 0.9), PAINT, paint, (0.4, 0.2))
    make.box((1.5, -0.35, 3.0), (1.1, 0.15, 0.2), PAINT, paint)
    make.box((2.5, -0.35, 1.9), (0.16, 0.14, 1.1), PAINT, paint)
    make.box((2.45, -0.35, 0.6), (0.4, 0.5, 0.35), METAL, (0.25, 0.24, 0.22), (0.3, 0.0))
    return 2.44, 5.7, 3.2


def _rider(make: _Builder, rng: np.random.Generator, x: float, seat: float) -> None:
    cloth = hsv(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.15, 0.85))
    for side in (-1, 1):
        make.column((x + 0.15, side * 0.13, seat - 0.25), 0.08, 0.3, CLOTH, hsv(0.62, 0.4, 0.2), 0.1)
    make.ball((x + 0.08, 0.0, seat + 0.33), (0.2, 0.23, 0.36), CLOTH, cloth)
    make.ball((x + 0.16, 0.0, seat + 0.82), (0.14, 0.13, 0.16), PLASTIC, hsv(rng.random(), 0.6, rng.uniform(0.2, 0.9)))


def _motorcycle(make: _Builder, rng: np.random.Generator, saturation: float) -> Size:
    paint = _paint(rng, saturation)
    for x in (-0.68, 0.68):
        make.ball((x, 0.0, 0.31), (0.31, 0.08, 0.31), TYRE, _DARK)
    make.box((0.0, 0.0, 0.55), (0.55, 0.14, 0.2), PAINT, paint, (0.2, 0.2))
    make.box((-0.3, 0.0, 0.8), (0.4, 0.13, 0.06), PLASTIC, _DARK)
    make.box((0.5, 0.0, 0.85), (0.12, 0.13, 0.3), PAINT, paint, (0.4, 0.3))
    make.box((0.45, 0.0, 1.08), (0.04, 0.36, 0.03), METAL, _DARK)
    make.box((0.66, 0.0, 0.85), (0.04, 0.09, 0.07), HEADLIGHT, (0.9, 0.9, 0.85))
    make.box((-0.78, 0.0, 0.75), (0.03, 0.07, 0.05), TAILLIGHT, (0.6, 0.05, 0.05))
    if rng.random() < 0.6:
        _rider(make, rng, -0.2, 0.86)
        return 0.75, 2.0, 1.84
    return 0.75, 2.0, 1.15


def _bicycle(make: _Builder, rng: np.random.Generator, saturation: float) -> Size:
    paint = _paint(rng, saturation)
    for x in (-0.52, 0.52):
        make.ball((x, 0.0, 0.34), (0.34, 0.035, 0.34), TYRE, _DARK)
    make.box((0.0, 0.0, 0.62), (0.42, 0.03, 0.13), PAINT, paint, (0.0, 0.0))
    make.box((-0.22, 0.0, 0.88), (0.13, 0.07, 0.03), PLASTIC, _DARK)
    make.box((0.45, 0.0, 0.82), (0.03, 0.03, 0.24), METAL, _DARK)
    make.box((0.42, 0.0, 1.04), (0.03, 0.27, 0.02), METAL, _DARK)
    if rng.random() < 0.6:
        _rider(make, rng, -0.2, 0.92)
        return 0.56, 1.74, 1.9
    return 0.56, 1.74, 1.06


VEHICLE_KINDS: dict[str, tuple[int, Callable[[_Builder, np.random.Generator, float], Size]]] = {
    "car": (classes.CAR, _car),
    "bus": (classes.BUS, _bus),
    "truck": (classes.TRUCK, _truck),
    "trailer": (classes.TRAILER, _trailer),
    "construction": (classes.CONSTRUCTION_VEHICLE, _construction),
    "motorcycle": (classes.MOTORCYCLE, _motorcycle),
    "bicycle": (classes.BICYCLE, _bicycle),
}
"""Vehicle kinds: raw label, and the builder, which returns width, length and height."""


def add_vehicle(
    solids: SolidList, actor: int, kind: str, rng: np.random.Generator, saturation: float
) -> tuple[int, Size]:
    """Adds a vehicle of a kind; returns its raw label and its width, length and height in metres."""
    label, build = VEHICLE_KINDS[kind]
    return label, build(_Builder(solids, actor, label), rng, saturation)


def add_person(solids: SolidList, actor: int, label: int, rng: np.random.Generator) -> Size:
    """Adds a standing or walking person (adult, child or construction worker); returns width, length and height."""
    make = _Builder(solids, actor, label)
    tall = rng.uniform(0.58, 0.72) if label == classes.CHILD else rng.uniform(0.92, 1.08)
    worker = label == classes.CONSTRUCTION_WORKER
    cloth = hsv(0.13, 0.95, 0.95) if worker else hsv(rng.random(), rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9))
    legs = hsv(rng.uniform(0.5, 0.7), rng.uniform(0.0, 0.6), rng.uniform(0.06, 0.5))
    skin = hsv(0.07, rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.85))
    stride = rng.uniform(0.02, 0.2)
    for side in (-1, 1):
        make.column((side * stride, side * 0.1, 0.42 * tall), 0.085 * tall, 0.42 * tall, CLOTH, legs, -0.25)
        make.column((-side * stride, side * 0.26 * tall, 1.08 * tall), 0.05, 0.31 * tall, CLOTH, cloth, -0.2)
    make.ball((0.0, 0.0, 1.13 * tall), (0.15 * tall, 0.22 * tall, 0.37 * tall), CLOTH, cloth)
    make.ball((0.01, 0.0, 1.6 * tall), (0.11, 0.1, 0.135), SKIN, skin)
    hair = hsv(0.14, 0.9, 0.95) if worker else hsv(rng.uniform(0.03, 0.1), 0.5, rng.uniform(0.03, 0.35))
    make.ball((-0.025, 0.0, 1.65 * tall), (0.11, 0.108, 0.12), PLASTIC if worker else CLOTH, hair)
    return 0.62 * tall, 0.3 * tall + 2 * stride, 1.65 * tall + 0.12


def add_cone(solids: SolidList, actor: int, rng: np.random.Generator) -> Size:
    """Adds a traffic cone; returns width, length and height."""
    make, height = _Builder(solids, actor, classes.CONE), rng.uniform(0.65, 0.95)
    orange = hsv(rng.uniform(0.02, 0.06), 0.95, 0.95)
    make.box((0.0, 0.0, 0.025), (0.2, 0.2, 0.025), PLASTIC, orange)
    make.column((0.0, 0.0, height / 2), 0.16, height / 2, STRIPES, orange, 0.8)
    return 0.4, 0.4, height


def add_barrier(solids: SolidList, actor: int, rng: np.random.Generator) -> Size:
    """Adds a road barrier 2 m long; returns width, length and height (its long side lies along y, as a width)."""
    make = _Builder(solids, actor, classes.BARRIER)
    if rng.random() < 0.5:
        make.box((0.0, 0.0, 0.45), (0.28, 1.0, 0.45), STRIPES, (0.9, 0.9, 0.88), (0.6, 0.0))
        return 2.0, 0.56, 0.9
    for side in (-1, 1):
        make.box((0.0, side * 0.9, 0.5), (0.2, 0.04, 0.5), METAL, (0.6, 0.6, 0.6), (0.8, 0.0))
    make.box((0.0, 0.0, 0.78), (0.05, 1.0, 0.2), STRIPES, (0.9, 0.35, 0.1))
    return 2.0, 0.4, 1.0
