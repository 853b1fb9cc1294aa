"""Labels sweeps that belong to no data set with the 3D head, one label file per sweep.

A label file contains one little-endian uint32 per point, in the order of the sweep's points: the format of
SemanticKITTI, which common viewers and benchmarks read. Class ``c`` of the network is written as ``c + 1``; 0 means no
label, as in SemanticKITTI and nuScenes-lidarseg.
"""

import errno
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt32

from ...errors import ConfigError, DataError, MissingDataError, RunError
from ...files import write_bytes
from ...prefetch import map_ahead
from ...progress import progress
from ..datasets.checks import FileFault
from ..datasets.sweeps import SWEEP_SUFFIXES, read_coordinates, sweep_suffix
from ..train.batch import Batch, BatchPlan, cloud_batch
from ..train.network import Network
from .inference import cloud_classes
from .stamps import Stamps, file_stamp

__all__ = ["LABEL_SUFFIX", "LabelSummary", "find_sweeps", "label_path", "label_sweeps", "read_labels"]

LABEL_SUFFIX = ".label"


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """Number of sweeps labelled now (with ``points`` points) and before (``kept``), and those that failed."""

    labelled: int
    kept: int
    points: int
    failed: tuple[FileFault, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cloud:
    """One sweep ready for the network: its finite points as a batch, the mask of these points, and its stamp."""

    path: Path
    batch: Batch
    finite: Bool[np.ndarray, "points"]
    stamp: list[int]


def find_sweeps(points: Path) -> list[Path]:
    """Returns the sweep ``points``, or the sweeps in that folder (not in subfolders), sorted by name.

    Raises:
        MissingDataError: the file or folder does not exist, or contains no sweep.
        ConfigError: two sweeps differ only in their suffix, so that they would share a label file.
    """
    if points.is_file():
        return [points]
    if not points.is_dir():
        raise MissingDataError(f"There is no sweep and no folder of sweeps at {points}")
    # A broken link is included: it is reported like any sweep that cannot be read.
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
    """Returns the path of the labels of ``sweep`` in the folder ``out``."""
    return out / (_stem(sweep) + LABEL_SUFFIX)


def read_labels(path: Path) -> UInt32[np.ndarray, "points"]:
    """Read a label file of ``label_sweeps``: 0 for no label, otherwise a class of the network plus one."""
    return np.frombuffer(path.read_bytes(), "<u4")


def label_sweeps(
    network: Network, sweeps: Sequence[Path], out: Path, *, columns: int | None = None, workers: int = 2
) -> LabelSummary:
    """Label all points of each sweep that has no up-to-date label file; files appear atomically.

    ``columns`` is the number of float32 values per point of raw files whose suffix does not determine it. A sweep that
    cannot be read, or whose label file cannot be written because of its name, is reported, and the others are labelled.
    A point with a NaN or infinite coordinate gets label 0.

    Raises:
        RunError: the network's 3D head needs images, or the network computed NaN: it has diverged.
    """
    if network.needs_images:
        raise RunError(
            "This network needs the image's features at test (fusion.head=refine), and a sweep alone has none;"
            " train one with: xd3d train --cached --set fusion.head=distil"
        )
    stamps = Stamps(out)
    left = [sweep for sweep in sweeps if not stamps.hold([label_path(out, sweep)], [sweep])]
    plan = replace(network.plan, taps=())
    failed: list[FileFault] = []
    points = 0

    def read(sweep: Path, _slot: int) -> _Cloud | FileFault:
        return _read(sweep, columns, plan)

    clouds = map_ahead(read, left, workers)
    with closing(clouds), progress("label sweeps", len(sweeps), "sweep", len(sweeps) - len(left)) as bar:
        for cloud, _ in clouds:
            fault = cloud if isinstance(cloud, FileFault) else _store(out, cloud, _labels(network, cloud))
            if fault is not None:
                failed.append(fault)
            elif isinstance(cloud, _Cloud):
                stamps.add(label_path(out, cloud.path), cloud.stamp)
                points += len(cloud.finite)
            bar.update(1)
    done = len(left) - len(failed)
    return LabelSummary(labelled=done, kept=len(sweeps) - len(left), points=points, failed=tuple(failed))


def _stem(sweep: Path) -> str:
    return sweep.name[: len(sweep.name) - len(sweep_suffix(sweep))]


def _read(sweep: Path, columns: int | None, plan: BatchPlan) -> _Cloud | FileFault:
    try:
        stamp = file_stamp([sweep])
        points = read_coordinates(sweep, columns=columns)
        finite = (np.abs(points) <= np.finfo(np.float32).max).all(axis=1)  # no NaN either
        if not finite.any():
            return FileFault(path=sweep, reason=f"not one of its {len(points)} points has finite coordinates")
        points = points[finite]
        if (step := np.spacing(np.abs(points).max())) > plan.model.voxel_size / 2:
            far = f"its coordinates go up to {np.abs(points).max():.4g} m in {points.dtype}, in steps of {step:g} m"
            return FileFault(path=sweep, reason=f"{far}; store them from an origin near the sensor, or as float64")
        return _Cloud(path=sweep, batch=cloud_batch(points, str(sweep), plan), finite=finite, stamp=stamp)
    except (DataError, MissingDataError) as error:
        return FileFault(path=sweep, reason=str(error))
    except OSError as error:
        return FileFault(path=sweep, reason=f"it cannot be read ({error.strerror})")


def _labels(network: Network, cloud: _Cloud) -> UInt32[np.ndarray, "points"]:
    labels = np.zeros(len(cloud.finite), "<u4")
    labels[cloud.finite] = cloud_classes(network, cloud.batch) + 1
    return labels


def _store(out: Path, cloud: _Cloud, labels: UInt32[np.ndarray, "points"]) -> FileFault | None:
    """Write the label file; returns a fault if a file of that name cannot be written, and raises other errors."""
    try:
        write_bytes(label_path(out, cloud.path), labels.tobytes())
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR):
            raise
        return FileFault(path=cloud.path, reason=f"its label file cannot be written ({error.strerror})")
    return None
