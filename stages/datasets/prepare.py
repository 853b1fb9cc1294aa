"""Stage zero in one call: indexes a data set, checks files and calibrations, and saves the index if all are valid."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError, MissingDataError, nearest
from .alignment import Alignment, measure_alignment
from .checks import FileFault
from .pictures import draw_views
from .readers import READERS
from .visibility import View, check_views, view_scenes

__all__ = ["PrepareSummary", "prepare_dataset"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """The result of ``prepare_dataset``; ``index`` is the folder of the index, None if there are faults."""

    dataset: str
    index: Path | None
    frames: int
    images: int
    missing: tuple[FileFault, ...]
    views: tuple[View, ...] = ()  #: what each camera sees of a frame of each scene
    alignments: tuple[Alignment, ...] = ()  #: whether the edges of points and images fit, by camera

    def to_json(self) -> dict[str, Any]:
        """Returns the summary with the keys fixed for scripts; ``missing`` lists ``{"file", "reason"}``."""
        return {
            "dataset": self.dataset,
            "index": None if self.index is None else str(self.index),
            "frames": self.frames,
            "images": self.images,
            "missing": [{"file": str(fault.path), "reason": fault.reason} for fault in self.missing],
        }


def prepare_dataset(
    dataset: str,
    root: Path,
    index_folder: Path,
    *,
    version: str | None = None,
    cameras: str | Sequence[str] | None = None,
    picture: Path | None = None,
) -> PrepareSummary:
    """Indexes ``dataset`` at ``root`` and checks it; saves the index to ``index_folder`` if there is no fault.

    Every file is checked, one frame of each scene is projected to its images, and a few frames are compared with them.

    ``picture``: a file to draw the projected points to, over their images; also if the calibration is refused.
    With faults, an existing index stays unchanged.

    Raises:
        ConfigError: unknown data set or camera, or a picture of a data set without images is asked for.
        MissingDataError: the root, the version or a table is missing, or the root has no frame.
        DataError: the tables are damaged, a folder is not readable, or a calibration shows no point in any image.
    """
    if dataset not in READERS:
        raise ConfigError(f"There is no data set '{dataset}'; {nearest(dataset, READERS)} (option --dataset)")
    reader = READERS[dataset]
    try:
        index = reader.build_index(root, version=version, cameras=cameras)
    except PermissionError as error:
        raise DataError(
            f"{error.filename} is not readable; fix that, for example with: chmod -R u+rX {json.dumps(str(root))}"
        ) from error
    if not len(index.frames.key):
        raise MissingDataError(f"The root {index.root} holds no frame of {dataset}; unpack the whole download again")
    if picture and not len(index.images.key):
        raise ConfigError(f"There is no image of {dataset} to draw points over; choose some cameras, or no --picture")
    faults = reader.check_files(index)
    views = [] if faults else view_scenes(index)
    if picture and views:
        draw_views(index, views, picture)
    check_views(views)
    alignments = [] if faults else measure_alignment(index)
    for found in alignments:
        if found.clear and not found.fits:
            log.warning("%s; check its calibration", found)
    if not faults:
        index.save(index_folder)
    return PrepareSummary(
        dataset=dataset,
        index=None if faults else index_folder,
        frames=len(index.frames.key),
        images=len(index.images.key),
        missing=tuple(faults),
        views=tuple(views),
        alignments=tuple(alignments),
    )
