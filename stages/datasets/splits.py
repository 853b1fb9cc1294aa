"""Domains and splits: which frames of an index a run trains on, is validated on and is tested on.

A *domain* is a part of nuScenes: ``usa`` (log location contains "boston"), ``singapore`` (it does not), ``night``
("night" in the scene's description, in any case), ``day`` (it is not), ``all``. The domains of the generalisation
benchmark (``streets`` and what begins so) are parts of its synthetic root, whose scene descriptions begin with them; a
fifth of their train scenes is held out.

The rule called ``xd3d``. The published settings hold scenes of the official train split out as val of the target: 15 of
84 night scenes, 69 of 310 Singapore scenes, 70 of all 700 (84 and 310 follow from the published frame counts, at 40
keyframes a scene). Which scenes are held out is our own rule here, with the same counts: per domain, the scenes of the
official train split are sorted by the sha256 of their name, and the first ``k = round(share * scenes)`` are held out
(at least one, and at least one is left for training), where ``share`` is the published count over the number of scenes.
A smaller data set keeps the shares, and may have scenes of any name.

- ``train``: scenes of the official train split that the domain does not hold out;
- ``val``: the scenes held out. ``usa`` and ``day`` hold out none, as published: a run with such a target is validated
  on its source (`validation_domain`);
- ``test``: the official val scenes of the domain.

No training frame may come from a scene that the run is validated on. In the published shifts source and target share
no scene, and the rule has nothing to add; for other pairs (``all`` to ``night``) the training frames of the source are
asked for with ``validated_on``, which takes those scenes out.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
from jaxtyping import Bool, Int64

from ...errors import ConfigError, DataError, nearest
from .index import FrameIndex
from .settings import BenchmarkDomain

__all__ = ["DOMAINS", "SPLITS", "SPLIT_RULE", "domain_frames", "validation_domain"]

#: Name of the rule, stored with every score.
SPLIT_RULE = "xd3d"

SPLITS = ("train", "val", "test")

#: Published target val scenes over the scenes of the domain in the official train split.
_HELD_OUT_SHARE = {
    "night": 15 / 84,
    "singapore": 69 / 310,
    "all": 70 / 700,
    **dict.fromkeys(get_args(BenchmarkDomain), 1 / 5),
}


def _contains(column: np.ndarray, word: str) -> Bool[np.ndarray, "frames"]:
    return np.char.find(np.char.lower(column.astype(str)), word) >= 0


def _named(domain: str, index: FrameIndex) -> Bool[np.ndarray, "frames"]:
    return np.char.partition(index.frames.description.astype(str), ",")[:, 0] == f"Domain {domain}"


_MEMBERS: dict[str, Callable[[FrameIndex], Bool[np.ndarray, "frames"]]] = {
    "usa": lambda index: _contains(index.frames.location, "boston"),
    "singapore": lambda index: ~_contains(index.frames.location, "boston"),
    "day": lambda index: ~_contains(index.frames.description, "night"),
    "night": lambda index: _contains(index.frames.description, "night"),
    "all": lambda index: np.ones(len(index.frames.key), bool),
    **{name: partial(_named, name) for name in get_args(BenchmarkDomain)},
}

DOMAINS = tuple(_MEMBERS)


def domain_frames(
    index: FrameIndex, domain: str, split: str, *, validated_on: str | None = None
) -> Int64[np.ndarray, "chosen"]:
    """Rows of the index's frames that belong to ``split`` of ``domain`` by the rule ``xd3d``, in order.

    ``validated_on`` names the domain on whose val split the run is validated: none of its frames is among the training
    frames then.

    Raises:
        ConfigError: unknown domain or split.
        DataError: no frame is left; the message counts the frames of every domain and split of the index.
    """
    _check("domain", domain, DOMAINS)
    _check("split", split, SPLITS)
    _check("domain", validated_on or domain, DOMAINS)
    chosen = _select(index, domain, split)
    if split == "train" and validated_on is not None:
        chosen &= ~_held_out(index, validated_on)
    rows = index.frames_where(chosen)
    if not len(rows):
        raise DataError(
            f"No frame of {index.root} is in split '{split}' of domain '{domain}'. It holds (rule {SPLIT_RULE!r},"
            f" train/val/test frames): {_inventory(index)}. Choose another domain or split, or prepare more data"
        )
    return rows


def validation_domain(source: str, target: str) -> str:
    """The domain on whose val split a run is validated: the target, or the source where the target holds out none.

    Raises:
        ConfigError: neither holds scenes out.
    """
    for domain in (target, source):
        _check("domain", domain, DOMAINS)
        if domain in _HELD_OUT_SHARE:
            return domain
    raise ConfigError(
        f"Neither '{source}' nor '{target}' holds out scenes for validation; "
        f"one of source and target must be: {', '.join(sorted(_HELD_OUT_SHARE))}"
    )


def _check(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ConfigError(f"There is no {kind} '{name}'; {nearest(name, known)}")


def _select(index: FrameIndex, domain: str, split: str) -> Bool[np.ndarray, "frames"]:
    if split == "test":
        return _MEMBERS[domain](index) & (index.frames.split == "val")
    held_out = _held_out(index, domain)
    return held_out if split == "val" else _training(index, domain) & ~held_out


def _training(index: FrameIndex, domain: str) -> Bool[np.ndarray, "frames"]:
    return _MEMBERS[domain](index) & (index.frames.split == "train")


def _held_out(index: FrameIndex, domain: str) -> Bool[np.ndarray, "frames"]:
    training = _training(index, domain)
    scenes = {str(name) for name in index.frames.scene[training]}
    if domain not in _HELD_OUT_SHARE or len(scenes) < 2:
        return np.zeros(len(training), bool)
    count = min(max(1, round(_HELD_OUT_SHARE[domain] * len(scenes))), len(scenes) - 1)
    by_digest = sorted(scenes, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return training & np.isin(index.frames.scene, by_digest[:count])


def _inventory(index: FrameIndex) -> str:
    counts = {domain: [int(_select(index, domain, split).sum()) for split in SPLITS] for domain in DOMAINS}
    return ", ".join(f"{domain} {'/'.join(map(str, numbers))}" for domain, numbers in counts.items())
