"""Labels: from a data set's raw ids to the classes of a setting, by a lookup table with a name.

A merge is one entry of ``merges.MERGES``; the lookup table of each of its data sets is built from the names of
``raw_classes``.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Int64, Integer

from ...errors import ConfigError, DataError, nearest
from .index import FrameIndex
from .merges import FOLDER, MERGES, datasets_of
from .raw_classes import RAW_NAMES

__all__ = ["IGNORE", "LabelMerge", "class_prior", "class_weights", "get_merge", "index_merge", "merge_names"]

#: Label of a point that no loss and no score counts.
IGNORE = -100

#: Least prior of a class that occurs; a rarer one would win wherever nothing else is sure.
LEAST_PRIOR = 0.01

#: What a lookup table holds for numbers that are no raw id of the data set.
_NO_ID = -1


@dataclass(frozen=True, kw_only=True)
class LabelMerge:
    """Classes of a setting and the way to them: ``lut[raw id]`` is a class id, ``IGNORE``, or -1 for no raw id.

    ``raw_ids`` are the way back: the raw id under which each class is written (the inverse of a learning map).
    """

    name: str
    classes: tuple[str, ...]
    lut: Int64[np.ndarray, "raw"]
    raw_ids: Int64[np.ndarray, "classes"]

    def apply(self, raw: Integer[np.ndarray, "points"]) -> Int64[np.ndarray, "points"]:
        """Class id, 0 to C - 1 or ``IGNORE``, of each raw label.

        Raises:
            DataError: a raw label is not an id of the data set.
        """
        if len(raw) and not 0 <= int(raw.min()) <= int(raw.max()) < len(self.lut):
            worst = int(raw.max()) if int(raw.max()) >= len(self.lut) else int(raw.min())
            raise DataError(
                f"Label {worst} is not an id of merge '{self.name}': raw labels go from 0 to {len(self.lut) - 1}"
            )
        labels = self.lut[raw]
        if (labels == _NO_ID).any():
            known = ", ".join(map(str, np.flatnonzero(self.lut != _NO_ID)))
            raise DataError(
                f"Label {int(raw[labels == _NO_ID][0])} is not an id of merge '{self.name}'; raw labels are {known}"
            )
        return labels


def merge_names() -> list[str]:
    """Names that ``get_merge`` knows."""
    return sorted(MERGES)


def get_merge(name: str, dataset: str | None = None) -> LabelMerge:
    """The label merge called ``name``, for the raw labels of ``dataset``: needed where the merge has several.

    Raises:
        ConfigError: there is no such merge (the message names the nearest), or it says nothing of the data set.
    """
    if name not in MERGES:
        raise ConfigError(f"There is no label merge '{name}'; {nearest(name, merge_names())} (setting data.merge)")
    known = datasets_of(name)
    chosen = dataset or (known[0] if len(known) == 1 else "")
    if chosen not in known:
        raise ConfigError(
            f"The label merge '{name}' is for the labels of {', '.join(known)}, not of '{chosen}'; choose another:"
            f" {', '.join(other for other in merge_names() if chosen in datasets_of(other)) or 'none fits'}"
            " (setting data.merge)"
        )
    groups = [members[chosen] for members in MERGES[name].values()]
    class_of = {member: number for number, members in enumerate(groups) for member in members}
    names = RAW_NAMES[chosen]
    lut = np.full(max(names) + 1, _NO_ID, np.int64)
    lut[list(names)] = [class_of.get(raw, IGNORE) for raw in names.values()]
    first_id = {raw: number for number, raw in sorted(names.items(), reverse=True)}
    raw_ids = np.array([first_id[members[0]] for members in groups], np.int64)
    return LabelMerge(name=name, classes=tuple(MERGES[name]), lut=lut, raw_ids=raw_ids)


def index_merge(name: str, index: FrameIndex) -> LabelMerge:
    """The label merge called ``name`` for the raw labels of ``index``.

    The classes of a folder of one's own are found by their names; its ids that no class has are ignored.

    Raises:
        ConfigError: as ``get_merge`` has it; or the folder has none of the classes.
    """
    if index.dataset != FOLDER:
        return get_merge(name, index.dataset)
    own = index.described["classes"]
    classes = tuple(own) if name == FOLDER else tuple(MERGES[name])
    if not set(own) & set(classes):
        raise ConfigError(
            f"dataset.yaml in {index.root} names the classes {', '.join(own)}, and the merge '{name}' knows"
            f" {', '.join(classes)}; name them alike, or take its own classes: --set data.merge={FOLDER}"
        )
    lut = np.full(1 << 16, IGNORE, np.int64)
    for number, each in enumerate(classes):
        lut[own.get(each, [])] = number
    raw_ids = np.array([next(iter(own.get(each, [])), 0) for each in classes], np.int64)
    return LabelMerge(name=name, classes=classes, lut=lut, raw_ids=raw_ids)


def class_weights(counts: Int[np.ndarray, "classes"]) -> Float[np.ndarray, "classes"]:
    """Weights of the cross entropy from points per class: log(5 total / n_c), divided by the smallest (float64).

    A class without a point has no finite weight by that formula; it gets 1, the smallest, since no label can ask
    for it.

    Raises:
        DataError: no class has a point.
    """
    if not counts.sum():
        raise DataError("Class weights need labelled points, and not one point of the selection has a class")
    weights = np.full(len(counts), np.inf)
    seen = counts > 0
    weights[seen] = np.log(5 * counts.sum() / counts[seen])
    weights /= weights.min()
    weights[~seen] = 1.0
    return weights


def class_prior(
    counts: Int[np.ndarray, "classes"], weights: Float[np.ndarray, "classes"]
) -> Float64[np.ndarray, "classes"]:
    """The prior that cross entropy with class ``weights`` makes a network assume, from points per class; sums to 1.

    In proportion to counts times weights, at least ``LEAST_PRIOR`` (before all are scaled to 1 again) for a class that
    occurs, and 0 for one that does not. At least one class must occur.
    """
    share = counts * weights.astype(np.float64)
    floored = np.where(counts > 0, np.maximum(share / share.sum(), LEAST_PRIOR), 0.0)
    return floored / floored.sum()
