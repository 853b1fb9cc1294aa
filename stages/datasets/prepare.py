"""Stage zero in one call: indexes a data set, checks files and calibrations, and saves the index if all are valid."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ...errors import ConfigError, DataError, MissingDataError, nearest
from .alignment import Alignment, measure_alignment
from .calibration_picture import draw_views
from .catalogue import FOLDER
from .checks import Faults, FileFault
from .decoding import warn_if_dark
from .folder_description import NAME, read_description
from .folder_labels import NO_LABEL
from .index import FrameIndex
from .projection_check import View, check_views, view_scenes
from .reader_arguments import name_some
from .readers import READERS
from .splits import split_counts

__all__ = ["PrepareSummary", "prepare_dataset"]

log = logging.getLogger(__name__)

#: Share of the labels that may be of ids that a description names neither under classes nor under ignore; 0 apart.
_UNNAMED = 0.05
#: Frames whose labels are looked at where the first of each scene have no class.
_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """The result of ``prepare_dataset``; ``index`` is the folder of the index, None if there are faults.

    ``incomplete`` is the number of frames that the faults concern; ``left_out`` are the frames left out of the index,
    with their reasons.
    """

    dataset: str
    index: Path | None
    frames: int
    images: int
    missing: tuple[FileFault, ...]
    incomplete: int
    left_out: Mapping[str, str]
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  #: frames by domain and split
    dropped: int = 0  #: points of these frames without usable coordinates, which no command uses
    views: tuple[View, ...] = ()  #: what each camera sees of a frame of each scene
    alignments: tuple[Alignment, ...] = ()  #: whether the edges of points and images fit, by camera

    def to_json(self) -> dict[str, Any]:
        """Returns the summary with the keys fixed for scripts.

        ``missing`` lists ``{"file", "reason"}``, and ``left_out``, if there are any, ``{"frame", "reason"}``.
        """
        return {
            "dataset": self.dataset,
            "index": None if self.index is None else str(self.index),
            "frames": self.frames,
            "images": self.images,
            "dropped": self.dropped,
            "splits": {domain: dict(counts) for domain, counts in self.splits.items()},
            "missing": [{"file": str(fault.path), "reason": fault.reason} for fault in self.missing],
            **(
                {"left_out": [{"frame": k, "reason": why} for k, why in self.left_out.items()]} if self.left_out else {}
            ),
        }


def prepare_dataset(
    dataset: str,
    root: Path,
    index_folder: Path,
    *,
    version: str | None = None,
    cameras: str | Sequence[str] | None = None,
    allow_missing: bool = False,
    follow_links: bool = False,
    picture: Path | None = None,
) -> PrepareSummary:
    """Indexes ``dataset`` at ``root`` and checks it; saves the index to ``index_folder`` if there is no fault.

    Every file is checked, one frame of each scene is projected to its images, and a few frames are compared with them.

    ``picture``: a file to draw the projected points to, over their images; also if the calibration is refused.
    With faults, an existing index stays unchanged; with ``allow_missing`` the frames that they concern are left out,
    and the index keeps the list of them. ``follow_links`` allows links out of a nuScenes root, whose tables name files;
    other data sets are listed as they lie on the disk, links included.

    Raises:
        ConfigError: unknown data set or camera, or a picture of a data set without images is asked for.
        MissingDataError: the root, the version or a table is missing, or the root has no frame.
        DataError: the tables are damaged, a folder is not readable, or a calibration shows no point in any image.
    """
    options = {"allow_missing": allow_missing, "follow_links": follow_links}
    index = _build_index(dataset, root, options, version=version, cameras=cameras)
    if picture and not len(index.images.key):
        raise ConfigError(f"There is no image of {dataset} to draw points over; choose some cameras, or no --picture")
    faults = READERS[dataset].check_files(index)
    incomplete = _incomplete(index, faults)
    if allow_missing and incomplete:
        index, faults = index.without(incomplete), Faults(dropped=faults.dropped)
        if not len(index.frames.key):
            raise _none_complete(incomplete)
    views = [] if faults else view_scenes(index)
    if picture and views:
        draw_views(index, views, picture)
    check_views(views)
    alignments = [] if faults else measure_alignment(index)
    for found in alignments:
        if found.clear and not found.fits:
            log.warning("%s; check its calibration", found)
    splits = {domain: counts for domain, counts in split_counts(index).items() if any(counts.values())}
    if not faults:
        _check_classes(index)
        warn_if_dark(index)
        _check_splits(index, splits)
        index.save(index_folder)
    return PrepareSummary(
        dataset=dataset,
        index=None if faults else index_folder,
        frames=len(index.frames.key),
        images=len(index.images.key),
        missing=tuple(faults),
        incomplete=len(incomplete),
        left_out=index.left_out,
        splits=splits,
        dropped=sum(faults.dropped.get(index.root / str(sweep), 0) for sweep in index.frames.sweep),
        views=tuple(views),
        alignments=tuple(alignments),
    )


def _build_index(dataset: str, root: Path, options: Mapping[str, Any], **chosen: Any) -> FrameIndex:
    """Returns the index of a root, which has a frame; the data set's reader gets those ``options`` that it knows."""
    if dataset not in READERS:
        raise ConfigError(f"There is no data set '{dataset}'; {nearest(dataset, READERS)} (option --dataset)")
    build = READERS[dataset].build_index
    chosen |= {name: value for name, value in options.items() if name in signature(build).parameters}
    try:
        index = build(root, **chosen)
    except PermissionError as error:
        raise DataError(
            f"{error.filename} is not readable; fix that, for example with: chmod -R u+rX {json.dumps(str(root))}"
        ) from error
    if not len(index.frames.key):
        if index.left_out:
            raise _none_complete(index.left_out)
        raise MissingDataError(f"The root {index.root} holds no frame of {dataset}; unpack the whole download again")
    return index


def _check_splits(index: FrameIndex, splits: Mapping[str, Mapping[str, int]]) -> None:
    """Warns of a user's folder without any frame to train on."""
    counts = splits.get("all", {})
    if index.dataset == FOLDER and not counts.get("train"):
        log.warning(
            "No frame is left to train on: 'val' takes %d and 'test' %d of %d frames, by %s; name fewer scenes there,"
            " unless this data set is only to be validated and tested on",
            *(counts.get("val", 0), counts.get("test", 0), len(index.frames.key), index.root / NAME),
        )


def _none_complete(incomplete: Mapping[str, str]) -> MissingDataError:
    key, reason = next(iter(incomplete.items()))
    return MissingDataError(f"Not one of {len(incomplete)} frames is complete; of {key}: {reason}")


def _check_classes(index: FrameIndex) -> None:
    """Checks that the labels of a user's folder hold ids of its classes, in the first labelled frame of each scene.

    Where these hold none, up to 64 frames throughout the folder are read. Many labels of ids that the description does
    not name are a warning.

    Raises:
        DataError: they hold none; the message names the ids of both.
    """
    labelled = np.flatnonzero(index.frames.labels != "")
    if index.dataset != FOLDER or not len(labelled):
        return
    wanted = {number for ids in index.described["classes"].values() for number in ids}
    rows = labelled[np.unique(index.frames.scene[labelled], return_index=True)[1]]
    counts = _count_ids(index, rows)
    if not wanted & set(counts):
        rows = labelled[:: -(-len(labelled) // _LOOKED_AT)]
        counts = _count_ids(index, rows)
    if not wanted & set(counts):
        named, held = (name_some([str(number) for number in sorted(ids)]) for ids in (wanted, counts))
        raise DataError(
            f"No label of {len(rows)} frames throughout the folder is of a class: {NAME} names the ids {named}, the"
            f" files hold {held}; correct 'classes' (or label_field)"
        )
    known = wanted | {0, NO_LABEL, *read_description(index.root).ignore}
    others = [(number, count / counts.total()) for number, count in counts.most_common() if number not in known]
    if sum(share for _, share in others) > _UNNAMED:
        log.warning(
            "In the %d frames that were looked at, labels of the ids %s are of no class and are ignored; name each"
            " under 'classes' or 'ignore' in %s",
            *(len(rows), name_some([f"{number} ({share:.1%})" for number, share in others]), index.root / NAME),
        )


def _count_ids(index: FrameIndex, rows: Int64[np.ndarray, "frames"]) -> Counter[int]:
    """The number of points of each raw id in the frames in ``rows``."""
    reader, counts = READERS[index.dataset], Counter[int]()
    for row in rows.tolist():
        labels = reader.read_labels(index, row, reader.read_sweep(index, row))
        counts.update(dict(zip(*(each.tolist() for each in np.unique(labels, return_counts=True)), strict=True)))
    return counts


def _incomplete(index: FrameIndex, faults: Sequence[FileFault]) -> dict[str, str]:
    """Returns the frames that have a faulty file: key -> the first fault."""
    reasons: dict[str, str] = {}
    for fault in faults:
        reasons.setdefault(fault.path.relative_to(index.root).as_posix(), str(fault))
    found: dict[int, str] = {}
    columns = (index.frames.sweep, np.arange(len(index.frames.key))), (index.images.path, index.images.frame)
    for paths, rows in (*columns, (index.frames.labels, np.arange(len(index.frames.key)))):
        bad = np.flatnonzero(np.isin(paths, list(reasons)))
        for path, row in zip(paths[bad], rows[bad], strict=True):
            found.setdefault(int(row), reasons[str(path)])
    return {str(index.frames.key[row]): found[row] for row in sorted(found)}
