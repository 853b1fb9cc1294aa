"""The scenes of a synthetic root: divides a number of frames into scenes of every domain and split.

Scenes have names of the official nuScenes split lists, so the official train/val rule applies to the synthetic root. A
group is one location, one split and one light, driven by one vehicle in one log; ``scenes.yaml`` lists the groups of
the city and of the generalisation benchmark.

Every group has at least one frame; the others are distributed by largest remainder. The groups of the benchmark form
parts, and each part's frames are distributed among its own groups, so that a part added later does not change earlier
scenes. A scene has about six keyframes: more frames make new scenes (new streets), and a train group with two frames
has two scenes, so that one can be held out as the target's val split. When a group has no unused names, its scenes get
longer, up to 40 keyframes, the length of a real scene (20 s at 2 Hz).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby

from ...errors import ConfigError
from .sources import read_table
from .styles import Hour, Weather

__all__ = ["BENCHMARK_GROUPS", "GROUPS", "MAXIMUM_FRAMES", "SceneGroup", "ScenePlan", "plan_scenes"]

KEYFRAMES_PER_SCENE = 6
FOG_EVERY = 6
SCENE_SPACING = timedelta(seconds=30)


@dataclass(frozen=True, kw_only=True)
class SceneGroup:
    """Scenes of one location, split and light, all from one log of one vehicle."""

    location: str  #: as in the nuScenes log table
    split: str  #: "train" or "val", the official list of the names
    share: int  #: of all frames, as a part of the sum of all groups' shares
    vehicle: str  #: name of the car, see ``rigs``
    start: datetime  #: local start time of the log
    names: tuple[str, ...]
    hour: Hour = "day"
    weather: Weather = "clear"
    domain: str = ""  #: benchmark domain, named in the descriptions of its scenes
    part: int = 0  #: the frames of a part are distributed among its groups

    @property
    def city(self) -> str:
        """The city of the location, see ``style_sampling``."""
        return self.location.partition("-")[0]

    @property
    def logfile(self) -> str:
        """The log's name in nuScenes style, such as ``n015-2018-07-24-11-22-45+0800``."""
        return f"{self.vehicle}-{self.start:%Y-%m-%d-%H-%M-%S%z}"


@dataclass(frozen=True, kw_only=True)
class ScenePlan:
    """One scene to be driven."""

    group: SceneGroup
    name: str
    keyframes: int
    weather: Weather
    start: int  #: microseconds since 1970, UTC
    slot: int  #: counts the scenes of a location; the scene's square on the location's map


def _groups(plan: str) -> tuple[SceneGroup, ...]:
    """Returns the groups of a plan in ``scenes.yaml``."""
    groups = []
    for entry in read_table("scenes")[plan]:
        names = tuple(f"scene-{n:04d}" for first, last in entry["scenes"] for n in range(first, last + 1))
        rest = {key: value for key, value in entry.items() if key not in ("scenes", "start")}
        groups.append(SceneGroup(**rest, names=names, start=datetime.fromisoformat(entry["start"])))
    return tuple(groups)


GROUPS, BENCHMARK_GROUPS = _groups("city"), _groups("benchmark")

#: With it, every group of either plan fits into its scene names.
MAXIMUM_FRAMES = 6000


def plan_scenes(frames: int, groups: Sequence[SceneGroup] = GROUPS) -> tuple[ScenePlan, ...]:
    """Divides ``frames`` keyframes into scenes, group by group; equal numbers give equal plans.

    Raises:
        ConfigError: fewer frames than groups, or more than ``MAXIMUM_FRAMES``.
    """
    if not len(groups) <= frames <= MAXIMUM_FRAMES:
        raise ConfigError(
            f"The synthetic city cannot have {frames} frames: every domain and split needs one, and the scene names "
            f"reach no further; choose --frames between {len(groups)} and {MAXIMUM_FRAMES}"
        )
    plans: list[ScenePlan] = []
    slots: dict[str, int] = {}
    for group, share in zip(groups, _share_out(frames, groups), strict=True):
        for order, keyframes in enumerate(_scene_lengths(group, share)):
            slot = slots.get(group.location, 0)
            slots[group.location] = slot + 1
            start = group.start + order * SCENE_SPACING
            plans.append(
                ScenePlan(
                    group=group,
                    name=group.names[order],
                    keyframes=keyframes,
                    weather=_weather(group, order),
                    start=(start - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1),
                    slot=slot,
                )
            )
    return tuple(plans)


def _weather(group: SceneGroup, order: int) -> Weather:
    """The weather of a benchmark domain; in the city every sixth day scene has fog."""
    foggy = not group.domain and group.hour == "day" and order % FOG_EVERY == FOG_EVERY - 1
    return "fog" if foggy else group.weather


def _share_out(frames: int, groups: Sequence[SceneGroup]) -> list[int]:
    """Frames per group, part by part; every part ends at its share of all frames, rounded."""
    total, ending = sum(group.share for group in groups), 0
    counts: list[int] = []
    for _, members in groupby(groups, key=lambda group: group.part):
        part = list(members)
        ending += sum(group.share for group in part)
        left = len(groups) - len(counts) - len(part)  # groups of later parts; each needs a frame
        end = min((2 * frames * ending + total) // (2 * total), frames - left)
        counts += _share_out_part(max(end - sum(counts), len(part)), part)
    return counts


def _share_out_part(frames: int, groups: Sequence[SceneGroup]) -> list[int]:
    """Frames per group: one each, the rest by share, rounded by largest remainder."""
    rest, total = frames - len(groups), sum(group.share for group in groups)
    counts = [1 + rest * group.share // total for group in groups]
    remainders = [rest * group.share % total for group in groups]
    by_remainder = sorted(range(len(groups)), key=lambda place: -remainders[place])
    for place in by_remainder[: frames - sum(counts)]:
        counts[place] += 1
    return counts


def _scene_lengths(group: SceneGroup, frames: int) -> list[int]:
    """Keyframes of each scene of a group, as equal as can be."""
    fewest = min(frames, 2 if group.split == "train" else 1)
    scenes = min(max(fewest, round(frames / KEYFRAMES_PER_SCENE)), len(group.names))
    return [frames // scenes + (order < frames % scenes) for order in range(scenes)]
