"""Domains and splits: the frames of an index for training, validation and test.

A *domain* is a part of a data set. Every data set has ``all``; nuScenes has ``usa`` (log location contains "boston"),
``singapore`` (it does not), ``night`` ("night" in the scene's description, case-insensitive) and ``day`` (the others).
The domains of the generalisation benchmark (``streets`` and names that start so) are parts of its synthetic root, whose
scene descriptions begin with them; a fifth of their train scenes is held out. SemanticSTF has a domain for each
weather.

The rule called ``xd3d``. The published nuScenes settings hold scenes of the official train split out as val of the
target: 15 of 84 night scenes, 69 of 310 Singapore scenes, 70 of all 700 (84 and 310 follow from the published frame
counts, at 40 keyframes per scene). The choice of scenes is a rule of this project, with the same counts: per domain,
the scenes of the official train split are sorted by the sha256 of their name, and the first ``k = round(share *
scenes)`` are held out (at least one, and at least one is left for training), where ``share`` is the published count
over the number of scenes. A smaller data set has the same shares; its scenes may have any name.

- ``train``: scenes of the official train split that the domain does not hold out;
- ``val``: the scenes held out. ``usa`` and ``day`` hold out none, as published: a run with such a target is validated
  on its source (`validation_side`);
- ``test``: the official val scenes of the domain; in an index of official test scenes alone (nuScenes v1.0-test,
  SemanticKITTI 11 to 21), which have no labels, all of them.

| data set, domain | train | val | test |
|---|---|---|---|
| semantickitti ``all`` | sequences 00 to 06, 09, 10 | 07, as xMUDA holds it out | 08 |
| semantickitti ``official`` | 00 to 07, 09, 10 | 08 | 11 to 21, without labels |
| semanticstf ``all`` and weathers | official train | none | official val |
| synlidar ``all`` | 12 of its 13 sequences | one, by the sha256 of its name | none |
| a2d2 ``all`` | all scenes but one | none | 20180807_145028, as xMUDA has it |
| virtualkitti ``all`` | all five worlds | none | none |
| folder ``all`` and its domains | neither val nor test | by its ``dataset.yaml`` | by its ``dataset.yaml`` |

No training frame may come from a scene of the run's validation. In the published shifts source and target share no
scene. For other pairs (``all`` to ``night``) ``validated_on`` excludes these scenes from the source's training frames.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int64

from ...errors import ConfigError, DataError, nearest
from .catalogue import DOMAINS, FOLDER, BenchmarkDomain
from .index import FrameIndex
from .settings import DomainSettings

__all__ = [
    "EVERY_SPLIT",
    "SPLITS",
    "SPLIT_RULE",
    "describe_splits",
    "domain_frames",
    "domain_names",
    "split_counts",
    "validation_side",
]

#: Name of the rule, stored with every score.
SPLIT_RULE = "xd3d"

SPLITS = ("train", "val", "test")
#: All frames of a domain, those in no split included.
EVERY_SPLIT = "all"

Members = Callable[[FrameIndex], Bool[np.ndarray, "frames"]]


@dataclass(frozen=True, kw_only=True)
class _Domain:
    """The frames of a domain, and its official train scenes that are held out for validation."""

    members: Members
    share: float = 0.0  #: of the train scenes, by the sha256 of their names
    scenes: tuple[str, ...] = ()  #: by name
    official: bool = False  #: the official splits are the splits

    @property
    def holds_out(self) -> bool:
        """Whether there is a val split."""
        return bool(self.share or self.scenes or self.official)


def _every(index: FrameIndex) -> Bool[np.ndarray, "frames"]:
    return np.ones(len(index.frames.key), bool)


def _contains(column: np.ndarray, word: str) -> Bool[np.ndarray, "frames"]:
    return np.char.find(np.char.lower(column.astype(str)), word) >= 0


def _named(domain: str, index: FrameIndex) -> Bool[np.ndarray, "frames"]:
    return np.char.startswith(np.char.add(index.frames.description.astype(str), ","), f"Domain {domain},")


def _described(weather: str, index: FrameIndex) -> Bool[np.ndarray, "frames"]:
    return index.frames.description == weather


def _located(domain: str, index: FrameIndex) -> Bool[np.ndarray, "frames"]:
    return index.frames.location == domain


#: Shares: published target val scenes over the scenes of the domain in the official train split. Data sets without
#: an entry have the domain ``all`` with the splits of their index.
_DOMAINS: Mapping[str, Mapping[str, _Domain]] = {
    **{dataset: {"all": _Domain(members=_every, official=True)} for dataset in DOMAINS},
    "nuscenes": {
        "usa": _Domain(members=lambda index: _contains(index.frames.location, "boston")),
        "singapore": _Domain(members=lambda index: ~_contains(index.frames.location, "boston"), share=69 / 310),
        "day": _Domain(members=lambda index: ~_contains(index.frames.description, "night")),
        "night": _Domain(members=lambda index: _contains(index.frames.description, "night"), share=15 / 84),
        "all": _Domain(members=_every, share=70 / 700),
        **{name: _Domain(members=partial(_named, name), share=1 / 5) for name in get_args(BenchmarkDomain)},
    },
    "semantickitti": {
        "all": _Domain(members=_every, scenes=("07",)),
        "official": _Domain(members=_every, official=True),
    },
    "semanticstf": {
        "all": _Domain(members=_every),
        **{
            weather: _Domain(members=partial(_described, weather))
            for weather in DOMAINS["semanticstf"]
            if weather != "all"
        },
    },
    "synlidar": {"all": _Domain(members=_every, share=1 / 13)},
    "a2d2": {"all": _Domain(members=_every)},
    "virtualkitti": {"all": _Domain(members=_every)},
}


def domain_frames(
    index: FrameIndex, domain: str, split: str, *, validated_on: str | None = None
) -> Int64[np.ndarray, "chosen"]:
    """Returns the rows of the index's frames in ``split`` of ``domain`` by the rule ``xd3d``, in order.

    ``split`` is one of ``SPLITS``, or ``EVERY_SPLIT``.
    ``validated_on`` is the domain of the run's validation; its val frames are excluded from training frames.

    Raises:
        ConfigError: unknown domain or split.
        DataError: no frame is left; the message counts the frames of every domain and split of the index.
    """
    _check("split", split, (*SPLITS, EVERY_SPLIT))
    chosen = _select(index, domain, split)
    if split == "train" and validated_on is not None:
        chosen &= ~_select(index, validated_on, "val")
    rows = np.flatnonzero(chosen)
    if not len(rows):
        raise DataError(
            f"No frame of {index.root} is in split '{split}' of domain '{domain}'. It holds (rule {SPLIT_RULE!r},"
            f" train/val/test frames): {describe_splits(split_counts(index))}. Choose another domain or split, or"
            " prepare more data"
        )
    return rows


def split_counts(index: FrameIndex) -> dict[str, dict[str, int]]:
    """Returns the number of frames by domain and split."""
    names = domain_names(index)
    return {name: {split: int(_select(index, name, split).sum()) for split in SPLITS} for name in names}


def describe_splits(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Returns the counts of train, val and test frames of each domain in a line."""
    return ", ".join(f"{name} {'/'.join(map(str, numbers.values()))}" for name, numbers in counts.items())


def domain_names(index: FrameIndex) -> list[str]:
    """Returns the domains of an index: those of its data set, and those in the description of a folder."""
    described = sorted(set(index.frames.location) - {""}) if index.dataset == FOLDER else []
    return [*_DOMAINS[index.dataset], *map(str, described)]


def validation_side(source: DomainSettings, target: DomainSettings) -> Literal["source", "target"]:
    """Returns the side of a run's validation: the target, or the source if the target holds out no scene.

    Raises:
        ConfigError: neither side holds out scenes.
    """
    if _domain(target.dataset, target.domain).holds_out:
        return "target"
    if _domain(source.dataset, source.domain).holds_out:
        return "source"
    known = {side.dataset: _DOMAINS[side.dataset] for side in (source, target)}
    choices = [
        f"{data} {name}" for data, domains in known.items() for name, domain in domains.items() if domain.holds_out
    ]
    raise ConfigError(
        f"Neither '{source.domain}' of {source.dataset} nor '{target.domain}' of {target.dataset} holds out scenes for"
        f" validation; one of source and target must be: {', '.join(sorted(choices)) or 'of another data set'}; or"
        " train without validation, to the last checkpoint: --set data.validate_on=none"
    )


def _check(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ConfigError(f"There is no {kind} '{name}'; {nearest(name, known)}")


def _domain(dataset: str, name: str) -> _Domain:
    if dataset == FOLDER and name != "all":
        return _Domain(members=partial(_located, name), official=True)
    _check("domain", name, _DOMAINS[dataset])
    return _DOMAINS[dataset][name]


def _select(index: FrameIndex, name: str, split: str) -> Bool[np.ndarray, "frames"]:
    domain = _domain(index.dataset, name)
    members = domain.members(index)
    if split == EVERY_SPLIT:
        return members
    training, official = members & (index.frames.split == "train"), members & (index.frames.split == "val")
    tested = members & (index.frames.split == "test")
    if domain.official:
        return {"train": training, "val": official, "test": tested}[split]
    if (index.frames.split == "test").all():
        official = tested
    held_out = training & np.isin(index.frames.scene, _held_out(domain, index.frames.scene[training]))
    return {"train": training & ~held_out, "val": held_out, "test": official}[split]


def _held_out(domain: _Domain, column: np.ndarray) -> list[str]:
    """The held-out scenes of a domain's train split."""
    scenes = {str(name) for name in column}
    if domain.scenes:
        return [scene for scene in domain.scenes if scene in scenes]
    if not domain.share or len(scenes) < 2:
        return []
    count = min(max(1, round(domain.share * len(scenes))), len(scenes) - 1)
    return sorted(scenes, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:count]
