"""Labels sweeps that belong to no data set with the 3D head, one label file per sweep.

A label file contains one little-endian uint32 per point, in the order of the sweep's points: the format of
SemanticKITTI, which common viewers and benchmarks read. By default class ``c`` of the network is written as ``c + 1``;
0 means no label, as in SemanticKITTI and nuScenes-lidarseg.
"""

import errno
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt32

from ...errors import ConfigError, DataError, MissingDataError
from ...prefetch import map_ahead
from ...progress import progress
from ..datasets.checks import FileFault
from ..datasets.foreign_files import foreign_kind
from ..datasets.listing import is_hidden, without_copies
from ..datasets.ros_bags import BAG_SUFFIX, bag_of, list_clouds
from ..datasets.sweeps import SWEEP_SUFFIXES, RawRows, Sweep, load_sweep, sweep_suffix
from ..evaluate.official import NO_CLASS
from ..train.batch import Batch, BatchPlan, cloud_batch
from ..train.network import Network
from .inference import cloud_logits
from .label_form import CLOUD_SUFFIX, LabelForm
from .stamps import Stamps, file_stamp

__all__ = [
    "LABEL_SUFFIX",
    "LabelSummary",
    "find_sweeps",
    "label_path",
    "label_sweeps",
    "read_labels",
    "warn_of_dropped",
]

log = logging.getLogger(__name__)

LABEL_SUFFIX = ".label"
_LOOKED_AT = 20  #: files of a folder without sweeps


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """Number of sweeps labelled now (with ``points`` points) and before (``kept``), and those that failed.

    ``dropped`` of the points have no usable coordinates, and no class.
    """

    labelled: int
    kept: int
    points: int
    failed: tuple[FileFault, ...]
    dropped: int


class _Cloud(NamedTuple):
    """One sweep ready for the network: all points, a batch of the usable ones, and the stamp of its file."""

    path: Path
    sweep: Sweep
    batch: Batch
    stamp: list[int]


def find_sweeps(points: Path) -> list[Path]:
    """Returns the sweep ``points``, or the sweeps in that folder (not in subfolders), sorted by name.

    A ROS 2 bag stands for the clouds in it.

    Raises:
        MissingDataError: the file or folder does not exist, or contains no sweep.
        ConfigError: two sweeps differ only in their suffix, so that they would share a label file.
    """
    if points.is_file():
        return _clouds(points)
    if not points.is_dir():
        raise MissingDataError(f"There is no sweep and no folder of sweeps at {points}")
    # A broken link is included: it is reported like any sweep that cannot be read.
    found = without_copies(
        path
        for path in points.iterdir()
        if (_is_sweep(path) or path.suffix.lower() == BAG_SUFFIX)
        and not is_hidden(path)
        and (path.is_file() or path.is_symlink())
    )
    if not found:
        some = sorted(path for path in points.iterdir() if path.is_file() and not is_hidden(path))[:_LOOKED_AT]
        foreign = next((f"; {path.name} {kind}" for path in some if (kind := foreign_kind(path))), "")
        raise MissingDataError(
            f"No file in {points} is a sweep: their names end in {', '.join(SWEEP_SUFFIXES)}{foreign}. The frames of a"
            " data set are labelled with: xd3d predict --dataset NAME"
        )
    sweeps = [sweep for path in found for sweep in _clouds(path)]
    first: dict[str, Path] = {}
    for sweep in sweeps:
        twin = first.setdefault(_stem(sweep), sweep)
        if twin != sweep:
            raise ConfigError(
                f"{twin.relative_to(points)} and {sweep.relative_to(points)} in {points} would share one label file;"
                " give each format a folder"
            )
    return sweeps


def _clouds(path: Path) -> list[Path]:
    """The clouds of a bag, or the sweep itself."""
    if path.suffix.lower() != BAG_SUFFIX:
        return [path]
    clouds = [path / name for name in list_clouds(path)]
    if not clouds:
        raise MissingDataError(f"The bag {path} holds no message of type sensor_msgs/msg/PointCloud2")
    return clouds


def label_path(out: Path, sweep: Path) -> Path:
    """Returns the path of the labels of ``sweep`` in the folder ``out``."""
    return out / (_stem(sweep) + LABEL_SUFFIX)


def read_labels(path: Path) -> UInt32[np.ndarray, "points"]:
    """Reads a label file; the number of a class is that of its ``LabelForm``."""
    return np.frombuffer(path.read_bytes(), "<u4")


def label_sweeps(
    network: Network,
    sweeps: Sequence[Path],
    out: Path,
    *,
    columns: int | None = None,
    form: LabelForm | None = None,
    workers: int = 2,
) -> LabelSummary:
    """Labels all points of each sweep that has no up-to-date label file; files appear atomically.

    ``columns`` is the number of values per point of raw files. By default it follows from the suffix or, if the values
    contradict it, is inferred from the values, with a warning. ``form`` defines the label numbers; if it has a palette,
    coloured clouds are written too. A sweep that cannot be read, or whose label file cannot be written because of its
    name, is reported, and the others are labelled. A point without usable coordinates (NaN, infinite, too coarse) has
    no class.

    Raises:
        RunError: the network's 3D head needs images, or the network computed NaN: it has diverged.
    """
    form = form or LabelForm.of(network.classes)
    stamps = Stamps(out)
    left = [
        sweep
        for sweep in sweeps
        if not stamps.is_up_to_date(form.files(label_path(out, sweep)), [bag_of(sweep) or sweep])
    ]
    plan = replace(network.plan, taps=())
    failed: list[FileFault] = []
    points = dropped = 0
    guessed = Counter[RawRows | None]()

    def read(sweep: Path, _slot: int) -> _Cloud | FileFault:
        return _read(sweep, columns, plan)

    clouds = map_ahead(read, left, workers)
    with closing(clouds), progress("label sweeps", len(sweeps), "sweep", len(sweeps) - len(left)) as bar:
        for cloud, _ in clouds:
            fault = cloud if isinstance(cloud, FileFault) else _label(network, cloud, label_path(out, cloud.path), form)
            if fault is not None:
                failed.append(fault)
            elif isinstance(cloud, _Cloud):
                stamps.add(label_path(out, cloud.path), cloud.stamp)
                points += len(cloud.sweep.points)
                dropped += int((~cloud.sweep.usable).sum())
                guessed[cloud.sweep.guessed] += 1
            bar.update(1)
    for rows, count in guessed.items():
        if rows is not None:
            log.warning(
                "%d sweeps are read with %s, because their values repeat after these; --columns sets another number",
                *(count, rows),
            )
    warn_of_dropped(dropped, points)
    done = len(left) - len(failed)
    return LabelSummary(
        labelled=done, kept=len(sweeps) - len(left), points=points, failed=tuple(failed), dropped=dropped
    )


def warn_of_dropped(dropped: int, points: int) -> None:
    """Logs how many of ``points`` points have no class, if any."""
    if dropped:
        log.warning("%d of %d points have no usable coordinates and get no class", dropped, points)


def _is_sweep(path: Path) -> bool:
    return bool(sweep_suffix(path)) and not path.name.endswith(CLOUD_SUFFIX)


def _stem(sweep: Path) -> str:
    if bag := bag_of(sweep):
        return f"{bag.stem}-{sweep.name}"
    return sweep.name[: len(sweep.name) - len(sweep_suffix(sweep))]


def _read(sweep: Path, columns: int | None, plan: BatchPlan) -> _Cloud | FileFault:
    try:
        stamp = file_stamp([bag_of(sweep) or sweep])
        read = load_sweep(sweep, columns=columns)
        if fault := read.fault(max_unusable=1.0):
            return FileFault(path=sweep, reason=fault)
        batch = cloud_batch(read.points[read.usable], str(sweep), plan)
        return _Cloud(path=sweep, sweep=read, batch=batch, stamp=stamp)
    except (DataError, MissingDataError) as error:
        return FileFault(path=sweep, reason=str(error))
    except OSError as error:
        return FileFault(path=sweep, reason=f"it cannot be read ({error.strerror})")


def _label(network: Network, cloud: _Cloud, labels: Path, form: LabelForm) -> FileFault | None:
    """Writes the predicted labels of a sweep; returns a fault if its name is too long or taken by a folder."""
    classes = np.full(len(cloud.sweep.points), NO_CLASS, np.int64)
    classes[cloud.sweep.usable] = cloud_logits(network, cloud.batch).argmax(1).numpy()
    try:
        form.write(labels, cloud.sweep.points, classes)
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR):
            raise
        return FileFault(path=cloud.path, reason=f"its label file cannot be written ({error.strerror})")
    return None
