"""Label merges as lookup tables from a data set's raw ids to the classes of a setting; class weights and priors.

A merge is one entry of ``merges.MERGES``; its lookup table for a data set is built from the names in ``catalogue``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Int64, Integer

from ...errors import ConfigError, DataError, nearest
from .catalogue import FOLDER, RAW_NAMES
from .folder_labels import NO_LABEL
from .index import FrameIndex
from .merges import MERGES, datasets_of

__all__ = [
    "IGNORE",
    "NO_CLASSES",
    "LabelMerge",
    "class_prior",
    "class_weights",
    "get_merge",
    "index_merge",
    "merge_names",
]

#: Label of a point that losses and scores ignore.
IGNORE = -100

#: Smallest prior of a class that occurs; a smaller one would let the class win wherever the prediction is unsure.
MIN_PRIOR = 0.01

#: Entry of a lookup table for numbers that are not a raw id of the data set.
_NO_ID = -1


@dataclass(frozen=True, kw_only=True)
class LabelMerge:
    """Classes of a setting and their lookup table: ``lut[raw id]`` is a class id, ``IGNORE``, or -1 if unknown.

    ``raw_ids`` is the inverse: the raw id under which predictions of each class are written.
    """

    name: str
    classes: tuple[str, ...]
    lut: Int64[np.ndarray, "raw"]
    raw_ids: Int64[np.ndarray, "classes"]

    @classmethod
    def unlabelled(cls, classes: Sequence[str]) -> "LabelMerge":
        """Returns the merge of frames whose labels are not read."""
        nothing = np.zeros(0, np.int64)
        return cls(name="unlabelled", classes=tuple(classes), lut=nothing, raw_ids=nothing)

    def apply(self, raw: Integer[np.ndarray, "points"]) -> Int64[np.ndarray, "points"]:
        """Returns the class id, 0 to C - 1 or ``IGNORE``, of each raw label.

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


#: The merge of frames whose labels nobody asks for.
NO_CLASSES = LabelMerge.unlabelled(())


def merge_names() -> list[str]:
    """Returns the names that ``get_merge`` accepts."""
    return sorted(MERGES)


def get_merge(name: str, dataset: str | None = None) -> LabelMerge:
    """Returns the merge called ``name`` for the raw labels of ``dataset``, which is required if the merge has several.

    Raises:
        ConfigError: the merge is unknown (the message has the nearest name), or does not cover the data set.
    """
    if name not in MERGES:
        raise ConfigError(f"There is no label merge '{name}'; {nearest(name, merge_names())} (setting data.merge)")
    known = datasets_of(name)
    chosen = dataset or (known[0] if len(known) == 1 else "")
    if chosen not in known:
        raise ConfigError(
            f"The label merge '{name}' is for the labels of {', '.join(known)}, not of '{chosen}'; choose another:"
            f" {', '.join(other for other in merge_names() if chosen in datasets_of(other)) or 'there is none'}"
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


def index_merge(name: str, index: FrameIndex, *, labelled: bool = True) -> LabelMerge:
    """Returns the merge called ``name`` for the raw labels of ``index``.

    The classes of a user's folder are matched by name; its ids without a class are ignored. Where no frame is
    ``labelled``, a folder need not name any of the classes.

    Raises:
        ConfigError: as for ``get_merge``; or the folder has none of the classes, or the merge ``folder`` no class.
    """
    if index.dataset != FOLDER:
        return get_merge(name, index.dataset)
    described = index.described["classes"]
    classes = tuple(described) if name == FOLDER else tuple(MERGES[name])
    if not classes:
        raise ConfigError(
            f"dataset.yaml in {index.root} names no classes, which data.merge={FOLDER} would take; name them there, or"
            f" take those of another merge: --set data.merge=NAME ({', '.join(merge_names())})"
        )
    if labelled and not set(described) & set(classes):
        raise ConfigError(
            f"dataset.yaml in {index.root} names the classes {', '.join(described) or '(none)'}, and the merge '{name}'"
            f" has {', '.join(classes)}; rename them, or use its own classes: --set data.merge={FOLDER}"
        )
    lut = np.full(NO_LABEL + 1, IGNORE, np.int64)
    for number, each in enumerate(classes):
        lut[described.get(each, [])] = number
    raw_ids = np.array([next(iter(described.get(each, [])), 0) for each in classes], np.int64)
    return LabelMerge(name=name, classes=classes, lut=lut, raw_ids=raw_ids)


def class_weights(counts: Int[np.ndarray, "classes"]) -> Float[np.ndarray, "classes"]:
    """Returns cross-entropy weights from points per class: log(5 total / n_c), divided by the smallest (float64).

    A class without points, whose weight would be infinite, gets 1.

    Raises:
        DataError: no class has a point.
    """
    if not counts.sum():
        raise DataError("Class weights need labelled points, and no point of the selection has a class")
    weights = np.full(len(counts), np.inf)
    seen = counts > 0
    weights[seen] = np.log(5 * counts.sum() / counts[seen])
    weights /= weights.min()
    weights[~seen] = 1.0
    return weights


def class_prior(
    counts: Int[np.ndarray, "classes"], weights: Float[np.ndarray, "classes"]
) -> Float64[np.ndarray, "classes"]:
    """Returns the class prior that a network learns from cross entropy with class ``weights``; sums to 1.

    It is proportional to counts times weights, at least ``MIN_PRIOR`` (before the final normalisation) for classes that
    occur, and 0 for others. At least one class must occur.
    """
    share = counts * weights.astype(np.float64)
    floored = np.where(counts > 0, np.maximum(share / share.sum(), MIN_PRIOR), 0.0)
    return floored / floored.sum()
