"""Labels the frames of a data set: one label file of a whole sweep for each modality, and its probabilities if asked.

``fused/08/000123.label`` holds one little-endian uint32 per point of the frame ``08/000123``; ``xm``, ``2d`` and ``3d``
hold those of the other modalities. Points that no camera sees have the class of the 3D head, and none in ``2d``.
"""

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import DataError, DiskSpaceError, MissingDataError
from ...files import free_bytes, write_atomic
from ..datasets.checks import FileFault
from ..datasets.index import FrameIndex
from ..datasets.readers import READERS
from ..evaluate.metrics import MODALITIES, Modality
from ..evaluate.settings import FusionRule
from ..train.domain import Domain
from ..train.network import Network
from .inference import predict_each
from .label_form import LabelForm
from .stamps import Stamps, file_stamp, frame_files
from .submission import Submission
from .sweeps import LABEL_SUFFIX, LabelSummary, warn_of_dropped
from .whole_sweeps import SweepPrediction, sweep_prediction

__all__ = ["PROBABILITY_SUFFIX", "LabelFolder", "check_disk", "label_frames", "modalities_of"]

PROBABILITY_SUFFIX = ".npy"
CLOUD_BYTES = 19  #: of a point in a coloured cloud of float32


def modalities_of(network: Network, *, images: bool, fusion: FusionRule) -> tuple[Modality, ...]:
    """Returns the modalities that are predicted with or without ``images``, the decisive one first."""
    with_images = images and bool(network.plan.taps)
    missing = set() if with_images else {"xm", "2d", *(("fused",) if fusion == "sum" else ())}
    return tuple(name for name in reversed(MODALITIES) if name not in missing)


@dataclass(kw_only=True, eq=False)
class LabelFolder:
    """A folder of label files in ``form``, with a coloured cloud of the first modality if the form has a palette.

    ``probabilities``: for each label file an array [points, classes] of float16 is written too.
    """

    out: Path
    index: FrameIndex
    modalities: tuple[Modality, ...]
    form: LabelForm
    probabilities: bool = False

    def __post_init__(self) -> None:
        self._stamps = Stamps(self.out)

    @property
    def bytes_per_point(self) -> int:
        """Bytes that are written for each point of a sweep."""
        shares = 2 * (len(self.form.numbers) - 1) if self.probabilities else 0
        return len(self.modalities) * (4 + shares) + (0 if self.form.palette is None else CLOUD_BYTES)

    def label_path(self, row: int, modality: Modality) -> Path:
        """Returns the path of a label file of the frame in ``row``."""
        return self.out / modality / f"{self.index.frames.key[row]}{LABEL_SUFFIX}"

    def holds(self, row: int) -> bool:
        """Returns whether all files of the frame in ``row`` exist and were made from its current sweep and images."""
        labels = [self.label_path(row, modality) for modality in self.modalities]
        shares = [path.with_suffix(PROBABILITY_SUFFIX) for path in labels if self.probabilities]
        return self._stamps.is_up_to_date(
            [*self.form.files(labels[0]), *labels[1:], *shares], frame_files(self.index, row)
        )

    def write(self, row: int, prediction: SweepPrediction) -> None:
        """Writes the files of the frame in ``row``."""
        stamp = file_stamp(frame_files(self.index, row))
        form = self.form
        for modality in self.modalities:
            labels = self.label_path(row, modality)
            labels.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a file of an earlier call, whose labels are replaced
                labels.with_suffix(PROBABILITY_SUFFIX).unlink()
            form.write(labels, prediction.points, prediction.classes(modality))
            form = replace(form, palette=None)  # only the first modality has a coloured cloud
            if self.probabilities:
                shares = prediction.probabilities(modality).astype(np.float16)
                write_atomic(labels.with_suffix(PROBABILITY_SUFFIX), partial(np.save, arr=shares, allow_pickle=False))
        self._stamps.add(self.label_path(row, self.modalities[0]), stamp)


def label_frames(
    network: Network,
    domain: Domain,
    store: "LabelFolder | Submission",
    *,
    fusion: FusionRule,
    norm_window: int | None = None,
    workers: int = 2,
) -> LabelSummary:
    """Predicts every frame of ``domain`` that ``store`` does not hold yet; no label file of the data set is opened.

    ``norm_window`` is that of ``predict_frames``. A frame whose sweep, image or features cannot be read is reported,
    and the others are predicted.

    Raises:
        RunError: the network does not fit the features, needs images that are not there, or has diverged.
    """
    rows = [int(row) for row in domain.frames]
    left = [row for row in rows if not store.holds(row)]
    part = replace(domain.unlabelled(), frames=np.array(left, np.int64))
    failed: list[FileFault] = []
    points = dropped = 0
    kept = len(rows) - len(left)
    with closing(
        predict_each(network, part, fusion=fusion, norm_window=norm_window, workers=workers, done=kept)
    ) as each:
        for found in each:
            row = left[found.position]
            if found.frame is None or found.prediction is None:
                path = domain.index.root / str(domain.index.frames.sweep[row])
                failed.append(FileFault(path=path, reason=str(found.fault)))
                continue
            whole = sweep_prediction(network, part, found.position, found.frame, found.prediction)
            store.write(row, whole)
            points += len(whole.points)
            dropped += found.frame.dropped
    warn_of_dropped(dropped, points)
    done = len(left) - len(failed)
    return LabelSummary(labelled=done, kept=kept, points=points, failed=tuple(failed), dropped=dropped)


def check_disk(out: Path, index: FrameIndex, rows: Sequence[int], bytes_per_point: int) -> int:
    """Returns the forecast of the bytes that ``rows`` take in ``out``, from the points per byte of one sweep.

    Raises:
        DiskSpaceError: the disk has less free.
    """
    paths = [index.root / str(index.frames.sweep[row]) for row in rows]
    sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
    needed = 0
    for row, size in zip(rows, sizes, strict=True):
        with suppress(DataError, MissingDataError):  # a damaged sweep is reported when its turn comes
            points = len(READERS[index.dataset].read_sweep(index, row).points)
            needed = int(points / size * sum(sizes)) * bytes_per_point
            break
    free = free_bytes(out)
    if needed > free:
        raise DiskSpaceError(
            f"The predictions of {len(rows)} sweeps need about {needed / 1e9:.2f} GB in {out}, and the disk has"
            f" {free / 1e9:.2f} GB free; free some, choose another disk with --out, or fewer sweeps with --scenes"
        )
    return needed
