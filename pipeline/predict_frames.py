"""Labels for the frames of a data set from a trained run, with their images and without labels."""

import csv
import dataclasses
import io
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CacheError, ConfigError
from ..files import write_bytes
from ..stages.datasets.catalogue import NUSCENES_16
from ..stages.datasets.index import FrameIndex
from ..stages.datasets.labels import LabelMerge, index_merge
from ..stages.datasets.readers import READERS
from ..stages.evaluate.official import require_official
from ..stages.evaluate.settings import FusionRule
from ..stages.train.domain import Domain
from .console import Outcome
from .domains import DomainOpener
from .export import log_faults, open_submission
from .folders import claim_folder
from .frame_choice import FrameChoice, refuse_options
from .label_forms import FACTS, LabelIds, draw_labels, label_facts, label_form, label_outcome
from .runs import TrainedRun
from .workspace import Workspace, absolute_path

if TYPE_CHECKING:
    from ..stages.predict.frames import LabelFolder
    from ..stages.predict.submission import Submission

__all__ = ["predict_frames"]

log = logging.getLogger(__name__)

FRAMES = "frames.csv"  #: beside the labels

#: Facts that must match before a folder of labels is resumed.
IDENTITY = ("dataset", "root", "weights", "classes", "fusion", "images", "adapt")


def predict_frames(
    workspace: Workspace,
    run: Path | None,
    choice: FrameChoice,
    *,
    out: Path | None,
    online: bool = False,
    fusion: FusionRule | None = None,
    norm_window: int | None = None,
    probabilities: bool = False,
    picture: bool = False,
    ids: LabelIds = "train",
    colour: bool = False,
    submission: bool = False,
    dry_run: bool = False,
    machine: Sequence[str] = (),
) -> Outcome:
    """Labels whole sweeps by all heads of a run together and by each; the exit code is 1 when a frame failed.

    Image features are read from the cache, or computed on the way with ``online`` or if the run was trained so.
    ``fusion`` is the rule of the fused prediction, by default the run's; ``norm_window`` 1 adapts BatchNorm to each
    sweep, larger ones depend on which sweeps are labelled in one go. ``ids``: which numbers the classes have, see
    ``label_form``. ``colour``: clouds with the colours of the fused classes are written too. With ``submission`` the
    fused classes are written in the official format of the data set instead, and as a zip file. With ``dry_run`` only
    the disk space is forecast. ``machine`` holds settings of this machine, as ``TrainedRun.open`` takes them.

    Raises:
        MissingDataError: there is no run, or the data set is not prepared.
        ConfigError: ``out`` holds labels of other data, of another network or by another rule, or the data set has no
            official format for the run's classes.
        CacheError: images have no cached features.
        DiskSpaceError: the disk has too little space for the labels.
        RunError: the network does not fit the data, needs images that are not there, or has no BatchNorm to adapt.
    """
    from ..stages.predict.frames import LabelFolder, label_frames, modalities_of

    begin = time.perf_counter()
    trained = TrainedRun.open(workspace, run, machine)
    trained.require_adaptable(norm_window)
    rule = fusion or trained.config.evaluate.fusion
    domain = _open(workspace, trained, choice, online=online)
    name = absolute_path(domain.index.root).name if choice.dataset == "folder" else choice.dataset
    if submission:
        extras = {"--probabilities": probabilities, "--picture": picture, "--colour": colour, "--ids": ids == "raw"}
        refuse_options(extras, "not part of a --submission")
        domain = _for_submission(trained, domain)
        out = (out or workspace.home / "submissions" / trained.folder.name / name).absolute()
        return _submit(trained, domain, out, rule, norm_window, dry_run=dry_run, begin=begin)
    out = (out or workspace.home / "labels" / trained.folder.name / name).absolute()
    form, meaning = label_form(trained, ids, colour=colour, index=domain.index)
    store = LabelFolder(
        out=out,
        index=domain.index,
        modalities=modalities_of(trained.network, images=domain.features is not None, fusion=rule),
        form=form,
        probabilities=probabilities,
    )
    forecast = _forecast(store, domain)
    if dry_run:
        return forecast
    labels = label_facts(trained, form, meaning, norm_window=norm_window)
    _claim(store, {**labels, **_facts(trained, domain, store, rule)})
    _list_frames(out / FRAMES, domain.index)
    done = label_frames(trained.network, domain, store, fusion=rule, norm_window=norm_window)
    shown = _picture(store, domain, trained.network.classes) if picture else None
    lists = {"classes": list(trained.network.classes), "modalities": list(store.modalities)}
    further = {**lists, "picture": str(shown) if shown else None}
    return label_outcome(done, out, sweeps=len(domain), begin=begin, further=further)


def _claim(store: "LabelFolder", facts: Mapping[str, Any]) -> None:
    claim_folder(
        store.out / FACTS,
        facts,
        IDENTITY,
        what="labels of other data, of another or otherwise adapted network, or by another rule of fusion",
        files=tuple(f"{modality}/*" for modality in store.modalities),
        option="--out",
    )


def _for_submission(trained: TrainedRun, domain: Domain) -> Domain:
    """Returns ``domain`` with the run's merge, which gives its classes official numbers.

    Raises:
        ConfigError: the data set has no official format, or its devkit refuses such predictions.
    """
    require_official(domain.index.dataset)
    merge = index_merge(trained.config.data.merge, domain.index)
    if domain.index.dataset == "nuscenes" and len(merge.classes) != len(NUSCENES_16):
        raise ConfigError(
            f"nuScenes takes predictions of its 16 classes, and this run tells {len(merge.classes)} apart"
            f" ({merge.name}); train one with: xd3d train --set data.merge=nuscenes-16"
        )
    if trained.network.needs_images and not domain.every_point:
        raise ConfigError(
            "A submission has a class for every point, and this run has none for points that no camera sees"
            " (fusion.head=refine); train one with: xd3d train --set fusion.head=distil"
        )
    return dataclasses.replace(domain, merge=merge)


def _submit(
    trained: TrainedRun,
    domain: Domain,
    out: Path,
    rule: FusionRule,
    norm_window: int | None,
    *,
    dry_run: bool,
    begin: float,
) -> Outcome:
    """Writes the official files of ``domain`` and their zip file, which needs every frame."""
    from ..stages.predict.frames import label_frames
    from ..stages.predict.submission import Submission

    forecast = _forecast(Submission(out=out, index=domain.index, merge=domain.merge), domain)
    if dry_run:
        return forecast
    store = open_submission(trained, domain, out, fusion=rule, norm_window=norm_window, option="--out")
    done = label_frames(trained.network, domain, store, fusion=rule, norm_window=norm_window)
    rows = [int(row) for row in domain.frames]
    log_faults(store, rows, images=domain.features is not None)
    packed = None if done.failed else store.pack(rows)
    advice = f"; to submit: {packed}" if packed else "; the submission is not complete yet"
    zipped = {"zip": str(packed) if packed else None}
    return label_outcome(done, out, sweeps=len(domain), begin=begin, advice=advice, further=zipped)


def _open(workspace: Workspace, trained: TrainedRun, choice: FrameChoice, *, online: bool) -> Domain:
    """Returns the chosen frames with their features; their labels are never read.

    Raises:
        CacheError: images have no cached features.
    """
    index = choice.open_index(workspace)
    cached = bool(trained.record["facts"]["cached"]) and not online
    opener = DomainOpener(workspace, trained.config, cached=cached, index=index)
    try:
        domain = opener.frames(index, choice.rows(index), LabelMerge.unlabelled(trained.network.classes))
        domain.require_features()
    except CacheError as error:
        raise CacheError(f"{error}\nOr compute the features on the way: xd3d predict --online") from error
    return domain.unlabelled()


def _forecast(store: "LabelFolder | Submission", domain: Domain) -> Outcome:
    """Forecasts the bytes that are still to be written, and logs them.

    Raises:
        DiskSpaceError: the disk has too little space.
    """
    from ..stages.predict.frames import check_disk

    left = [int(row) for row in domain.frames if not store.holds(int(row))]
    needed = check_disk(store.out, domain.index, left, store.bytes_per_point)
    text = f"{len(left)} of {len(domain)} sweeps to predict, about {needed / 1e9:.3f} GB in {store.out}"
    log.info("%s", text)
    result = {"out": str(store.out), "sweeps": len(domain), "left": len(left), "bytes_left": needed}
    return Outcome(result=result, text=text)


def _facts(trained: TrainedRun, domain: Domain, store: "LabelFolder", rule: FusionRule) -> dict[str, Any]:
    """What a folder of labels says of its files, and where they come from."""
    from ..stages.predict.frames import PROBABILITY_SUFFIX
    from ..stages.predict.sweeps import LABEL_SUFFIX

    rest = "no label" if trained.network.needs_images else "the class of the 3D head, which is given the whole sweep"
    return {
        "files": f"MODALITY/FRAME{LABEL_SUFFIX}: one little-endian uint32 a point, in the order of the sweep's points;"
        f" MODALITY/FRAME{PROBABILITY_SUFFIX}: the classes' probabilities, float16 [points, classes]",
        "modalities": list(store.modalities),
        "seen by no camera": f"{rest}; in 2d no label",
        "dataset": domain.index.dataset,
        "root": str(domain.index.root),
        "index": domain.index.digest,
        "cameras": list(domain.index.cameras),
        "images": domain.features is not None,
        "fusion": rule,
    }


def _list_frames(path: Path, index: FrameIndex) -> None:
    """Writes which sweep each name of a frame stands for."""
    text = io.StringIO()
    csv.writer(text).writerows([("frame", "sweep"), *zip(index.frames.key, index.frames.sweep, strict=True)])
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"))


def _picture(store: "LabelFolder", domain: Domain, classes: Sequence[str]) -> Path | None:
    """Draws the first frame that has labels, from above; None if there is none."""
    row = next((int(row) for row in domain.frames if store.holds(int(row))), None)
    if row is None:
        return None
    points = READERS[domain.index.dataset].read_sweep(domain.index, row).points
    return draw_labels(points, store.label_path(row, store.modalities[0]), store.form, classes)
