"""Stage zero in one call: indexes a data set, checks every file, and saves the index if all files are valid."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError, MissingDataError, nearest
from . import nuscenes
from .checks import FileFault
from .readers import READERS

__all__ = ["PrepareSummary", "prepare_dataset"]


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """The result of ``prepare_dataset``; ``index`` is the folder of the index, None if there are faults."""

    dataset: str
    index: Path | None
    frames: int
    images: int
    missing: tuple[FileFault, ...]

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
    follow_links: bool = False,
) -> PrepareSummary:
    """Indexes ``dataset`` at ``root`` and checks every file; saves the index to ``index_folder`` if there is no fault.

    With faults, an existing index stays unchanged. ``follow_links`` allows links out of a nuScenes root, whose tables
    name files; other data sets are listed as they lie on the disk, links included.

    Raises:
        ConfigError: unknown data set or camera.
        MissingDataError: the root, the version or a table is missing, or the root has no frame.
        DataError: the tables are damaged, or a folder is not readable.
    """
    if dataset not in READERS:
        raise ConfigError(f"There is no data set '{dataset}'; {nearest(dataset, READERS)} (option --dataset)")
    reader = READERS[dataset]
    try:
        build = (
            partial(nuscenes.build_index, follow_links=True)
            if follow_links and reader is nuscenes
            else reader.build_index
        )
        index = build(root, version=version, cameras=cameras)
    except PermissionError as error:
        raise DataError(
            f"{error.filename} is not readable; fix that, for example with: chmod -R u+rX {json.dumps(str(root))}"
        ) from error
    if not len(index.frames.key):
        raise MissingDataError(f"The root {index.root} holds no frame of {dataset}; unpack the whole download again")
    faults = reader.check_files(index)
    if not faults:
        index.save(index_folder)
    return PrepareSummary(
        dataset=dataset,
        index=None if faults else index_folder,
        frames=len(index.frames.key),
        images=len(index.images.key),
        missing=tuple(faults),
    )
