"""The scenes of the generalisation benchmark: one source domain and ten others with different shifts.

    domain               streets    hour, weather  car                          share  used as
    streets              Boston     day, clear     n008, 32 beams                30    source
    streets-city         Singapore  day, clear     n015, other 32 beams          15    target
    streets-night        Singapore  night, clear   n015                          15    target
    streets-fog          Boston     day, dense fog n008                          15    target
    streets-sensor       Boston     day, clear     n108, 64 beams, higher up     15    target
    streets-development  Singapore  dusk, rain     n015                          10    for choices, never reported
    streets-haze         Singapore  dusk, fog      n015                           9    for choices, never reported
    streets-dim          Boston     night, unlit   n109, 22 beams, lower down     9    for choices, never reported
    streets-dusk         Siena      dusk, clear    n110, 40 uneven beams         15    fresh target
    streets-snow         Boston     day, snow      n008                          15    fresh target
    streets-tilted       Boston     overcast       n111, 64 beams nose down      15    fresh target

Shares are per cent of the frames of the first six domains, which are the oldest and never change: 1200 of 1956 frames.
No choice was ever made on a fresh target. Half of the Boston streets have a grass verge, and half have sidewalks of
brick, so that the source has every class of the targets; those of the dim domain are in the outskirts, without street
lamps. As in nuScenes, ``streets-night`` is in the other city, so this shift changes the streets too. Each domain has
scenes of both official splits; the train scenes of a target serve adaptation and the oracle. Scene names are from the
official lists, and each scene's description starts with its domain.
"""

from dataclasses import dataclass
from datetime import datetime

from .plan import BOSTON, SIENA, SINGAPORE, SceneGroup, scene_names
from .styles import Hour, Weather

__all__ = ["BENCHMARK_GROUPS"]


@dataclass(frozen=True)
class _Domain:
    name: str
    location: str
    vehicle: str
    train: tuple[int, tuple[str, ...]]  # share in per cent of the first six domains' frames, scene names
    test: tuple[int, tuple[str, ...]]
    hour: Hour = "day"
    weather: Weather = "clear"
    part: int = 0

    def groups(self, day: int) -> tuple[SceneGroup, SceneGroup]:
        """Return the scenes of its two splits, recorded on ``day`` and the next, counted from 1 September 2018."""
        zone = {"boston": BOSTON, "singapore": SINGAPORE, "siena": SIENA}[self.location.partition("-")[0]]
        train, test = (
            SceneGroup(
                location=self.location,
                split=split,
                hour=self.hour,
                weather=self.weather,
                domain=self.name,
                part=self.part,
                share=share,
                vehicle=self.vehicle,
                start=datetime(2018, 9, day + later, 21 if "night" in self.hour else 13, 5, 30, tzinfo=zone),
                names=names,
            )
            for later, (split, (share, names)) in enumerate((("train", self.train), ("val", self.test)))
        )
        return train, test


_DOMAINS = (
    _Domain(
        name="streets",
        location="boston-seaport",
        vehicle="n008",
        train=(26, scene_names((347, 386), (410, 459))),
        test=(4, scene_names((92, 110))),
    ),
    _Domain(
        name="streets-city",
        location="singapore-onenorth",
        vehicle="n015",
        train=(10, scene_names((639, 679))),
        test=(5, scene_names((12, 18), (268, 278))),
    ),
    _Domain(
        name="streets-night",
        location="singapore-hollandvillage",
        vehicle="n015",
        hour="night",
        train=(10, scene_names((994, 1025), (1044, 1058))),
        test=(5, scene_names((962, 963), (1059, 1073))),
    ),
    _Domain(
        name="streets-fog",
        location="boston-seaport",
        vehicle="n008",
        weather="dense fog",
        train=(10, scene_names((224, 264))),
        test=(5, scene_names((519, 524), (552, 565))),
    ),
    _Domain(
        name="streets-sensor",
        location="boston-seaport",
        vehicle="n108",
        train=(10, scene_names((582, 600), (683, 689), (703, 719))),
        test=(5, scene_names((904, 917), (919, 931))),
    ),
    _Domain(
        name="streets-development",
        location="singapore-queenstown",
        vehicle="n015",
        hour="dusk",
        weather="rain",
        train=(4, scene_names((525, 539), (541, 546))),
        test=(6, scene_names((625, 627), (632, 638), (780, 784))),
    ),
    _Domain(
        name="streets-haze",
        location="singapore-tampines",
        vehicle="n015",
        hour="dusk",
        weather="fog",
        part=1,
        train=(4, scene_names((1, 2), (4, 11), (19, 30))),
        test=(5, scene_names((3, 3), (35, 36), (38, 39))),
    ),
    _Domain(
        name="streets-dim",
        location="boston-dorchester",
        vehicle="n109",
        hour="unlit night",
        part=1,
        train=(4, scene_names((120, 135), (138, 139), (149, 152))),
        test=(5, scene_names((221, 221), (329, 332))),
    ),
    _Domain(
        name="streets-dusk",
        location="siena-centro",
        vehicle="n110",
        hour="dusk",
        part=2,
        train=(10, scene_names((283, 306))),
        test=(5, scene_names((344, 346), (629, 630), (770, 771), (775, 775))),
    ),
    _Domain(
        name="streets-snow",
        location="boston-backbay",
        vehicle="n008",
        weather="snow",
        part=2,
        train=(10, scene_names((388, 403), (405, 408), (461, 464))),
        test=(5, scene_names((777, 778), (794, 799))),
    ),
    _Domain(
        name="streets-tilted",
        location="boston-southend",
        vehicle="n111",
        hour="overcast",
        part=2,
        train=(10, scene_names((847, 856), (860, 866), (868, 873), (875, 875))),
        test=(5, scene_names((800, 800), (802, 802), (966, 969), (971, 972))),
    ),
)

BENCHMARK_GROUPS = tuple(group for order, domain in enumerate(_DOMAINS) for group in domain.groups(1 + 2 * order))
