"""Labels for sweeps that belong to no data set: whole clouds through the 3D head, one label file each.

A label file holds one little-endian uint32 a point, in the order of the sweep's points: SemanticKITTI's form, which the
field's viewers and benchmarks read. Class ``c`` of the network is written as ``c + 1``; 0 means that the point has no
label, as it does in SemanticKITTI and in nuScenes-lidarseg.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt32

from ...cache.loader import made_ahead
from ...errors import ConfigError, DataError, MissingDataError, RunError
from ...files import write_bytes
from ...progress import progress
from ..datasets.checks import FileFault
from ..datasets.sweeps import SWEEP_SUFFIXES, finite_rows, read_points, sweep_suffix
from .batch import Batch, BatchPlan, cloud_batch
from .inference import cloud_classes
from .network import Network

__all__ = ["LabelSummary", "find_sweeps", "label_path", "label_sweeps", "read_labels"]

LABEL_SUFFIX = ".label"


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """Sweeps that got their labels now (of ``points`` points), had them already, and could not be read."""

    labelled: int
    kept: int
    points: int
    failed: tuple[FileFault, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cloud:
    """One sweep ready for the network: its finite points as a batch, and which of its points those are."""

    path: Path
    batch: Batch
    finite: Bool[np.ndarray, "points"]


def find_sweeps(points: Path) -> list[Path]:
    """The sweep that ``points`` is, or those in the folder (not below it), by name.

    Raises:
        MissingDataError: there is no such file or folder, or no sweep in it.
        ConfigError: two sweeps differ in their suffix alone, so that their labels would have one name.
    """
    if points.is_file():
        return [points]
    if not points.is_dir():
        raise MissingDataError(f"There is no sweep and no folder of sweeps at {points}")
    # A link to nowhere counts too: it is reported like any sweep that cannot be read.
    found = sorted(path for path in points.iterdir() if sweep_suffix(path) and (path.is_file() or path.is_symlink()))
    if not found:
        raise MissingDataError(f"No file in {points} is a sweep: their names end in {', '.join(SWEEP_SUFFIXES)}")
    first: dict[str, Path] = {}
    for path in found:
        twin = first.setdefault(_stem(path), path)
        if twin != path:
            raise ConfigError(
                f"{twin.name} and {path.name} in {points} would share one label file; give each format a folder"
            )
    return found


def label_path(out: Path, sweep: Path) -> Path:
    """Where the labels of ``sweep`` are, in the folder ``out``."""
    return out / (_stem(sweep) + LABEL_SUFFIX)


def read_labels(path: Path) -> UInt32[np.ndarray, "points"]:
    """The labels in the file that ``label_sweeps`` wrote: 0 for none, else a class of the network plus one."""
    return np.frombuffer(path.read_bytes(), "<u4")


def label_sweeps(
    network: Network, sweeps: Sequence[Path], out: Path, *, columns: int | None = None, workers: int = 2
) -> LabelSummary:
    """Label every point of every sweep that has no label file younger than itself; each file appears whole or not.

    ``columns``: float32 numbers a point of raw files, where their suffix does not say it. A sweep that cannot be read
    is reported, and the others are done. A point with a NaN or infinite coordinate gets label 0.

    Raises:
        RunError: the network's 3D head needs images, or it computed NaN: it has diverged.
    """
    if network.needs_images:
        raise RunError(
            "This network needs the image's features at test (fusion.head=refine), and a sweep alone has none;"
            " train one with: xd3d train --cached --set fusion.head=distil"
        )
    left = [sweep for sweep in sweeps if not _has_labels(sweep, label_path(out, sweep))]
    plan = replace(network.plan, taps=())
    failed: list[FileFault] = []
    points = 0

    def read(sweep: Path, _slot: int) -> _Cloud | FileFault:
        return _read(sweep, columns, plan)

    clouds = made_ahead(read, left, workers)
    with closing(clouds), progress("label sweeps", len(sweeps), "sweep", len(sweeps) - len(left)) as bar:
        for cloud, _ in clouds:
            if isinstance(cloud, FileFault):
                failed.append(cloud)
            else:
                _store(label_path(out, cloud.path), _labels(network, cloud))
                points += len(cloud.finite)
            bar.update(1)
    done = len(left) - len(failed)
    return LabelSummary(labelled=done, kept=len(sweeps) - len(left), points=points, failed=tuple(failed))


def _stem(sweep: Path) -> str:
    return sweep.name[: len(sweep.name) - len(sweep_suffix(sweep))]


def _has_labels(sweep: Path, labels: Path) -> bool:
    try:
        there = sweep.stat()  # its ctime tells of a file that was moved here, whatever its own age
        return labels.is_file() and labels.stat().st_mtime_ns > max(there.st_mtime_ns, there.st_ctime_ns)
    except FileNotFoundError:
        return False


def _read(sweep: Path, columns: int | None, plan: BatchPlan) -> _Cloud | FileFault:
    try:
        points = read_points(sweep, columns=columns)
        finite = finite_rows(points)
        if not finite.any():
            return FileFault(path=sweep, reason=f"not one of its {len(points)} points has finite coordinates")
        return _Cloud(path=sweep, batch=cloud_batch(points[finite], str(sweep), plan), finite=finite)
    except (DataError, MissingDataError) as error:
        return FileFault(path=sweep, reason=str(error))


def _labels(network: Network, cloud: _Cloud) -> UInt32[np.ndarray, "points"]:
    labels = np.zeros(len(cloud.finite), "<u4")
    labels[cloud.finite] = cloud_classes(network, cloud.batch) + 1
    return labels


def _store(path: Path, labels: UInt32[np.ndarray, "points"]) -> None:
    write_bytes(path, labels.tobytes())
