"""Builds the report of a trained and evaluated run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import RunError
from ...files import write_bytes
from ...stages.datasets.frames import Frame
from ...stages.evaluate.metrics import Metrics, Modality
from ...stages.evaluate.scores import FramePrediction
from ...stages.evaluate.settings import FusionRule
from ...stages.predict.inference import predict_frames
from ...stages.train.domain import Domain
from ...stages.train.features import FeatureSource
from ...stages.train.monitor import TIMING_KEYS
from ...stages.train.run_log import read_log
from ..runs import TrainedRun
from . import figures
from .analysis import analysis_sections
from .attention import read_images
from .clouds import clouds_section, run_label
from .frames import predictions_over_images, spread_frames
from .page import Picture, Section, Table, facts_table, legend, render_page

__all__ = ["build_report"]

OUTPUTS: dict[Modality, str] = {"2d": "2D", "3d": "3D", "xm": "xM", "fused": "fused"}
LOSS_NAMES_LEFT_OUT = {"step", "lr", "validation", *TIMING_KEYS}


def build_report(run: TrainedRun, path: Path, *, lead: str | None = None, other: TrainedRun | None = None) -> Path:
    """Writes the report of ``run`` to ``path``: scores on the target's test split, pictures, losses, protocol.

    With ``other``, the point clouds show the predictions of both runs, and the table of scores has its mean too if it
    is evaluated.

    Raises:
        MissingDataError: the run is not evaluated.
        RunError: it has been trained further since its evaluation, or ``other`` has other test frames or classes.
    """
    card = Metrics.load(run.scores_path("target", "test"))
    if card.protocol is not None and card.protocol.step != run.step:
        raise RunError(
            f"The scores of {run.folder} are those of step {card.protocol.step}, and its best checkpoint is now that of"
            f" step {run.step}; evaluate it again with: xd3d evaluate"
        )
    rule = card.protocol.fusion if card.protocol is not None else run.config.evaluate.fusion
    data = run.config.data
    extract = run.config.extract
    names = " and ".join(f"'{name}'" for name in extract.models or (extract.model,))
    images = (
        f" with features of the frozen network{'s' * (len(extract.models) > 1)} {names}"
        if run.config.fusion.image
        else ""
    )
    sentence = lead or (
        f"A network was trained on {data.source.dataset} ({data.source.domain}){images}, and tested on"
        f" {data.target.dataset} ({data.target.domain})."
    )
    sections = [
        _scores(run, card, rule, other),
        *_parts(card),
        clouds_section(run, rule, other),
        *_frames(run, rule),
        *analysis_sections(run, rule),
        _training(run),
        _confusion(card),
        _protocol(run, card),
    ]
    page = render_page("xd3d report", sentence, sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, page.encode(errors="backslashreplace"))
    return path


def _scores(run: TrainedRun, card: Metrics, rule: FusionRule, other: TrainedRun | None) -> Section:
    majority = run.majority(card)
    rows = [[name, *(_percent(values[key]) for key in OUTPUTS)] for name, values in card.iou.items()]
    rows.append(["mean (mIoU)", *(_percent(card.miou[key]) for key in OUTPUTS)])
    if other is not None and (beside := _current_metrics(other)) is not None:
        rows.append([f"mean of {run_label(other)}", *(_percent(beside.miou[key]) for key in OUTPUTS)])
    rows.append(["always the most frequent class", *[""] * (len(OUTPUTS) - 1), _percent(majority)])
    bars = {
        label: {name: values[key] for name, values in card.iou.items()}
        for key, label in OUTPUTS.items()
        if card.miou[key] is not None
    }
    return Section(
        heading="Scores on the target domain",
        text=f"Intersection over union in per cent, over {card.points:,} labelled points. 2D is the head of the image"
        " branch, 3D that of the 3D network, xM the sum of both softmaxes, and fused takes all predictions together"
        f" ({rule}). The last row is the score of always predicting the most frequent class.",
        parts=[
            Table(header=["class", *OUTPUTS.values()], rows=rows),
            Picture(figures.iou_bars(bars, card.classes), "IoU per class and output."),
        ],
    )


def _current_metrics(run: TrainedRun) -> Metrics | None:
    """Returns the stored metrics of a run's best checkpoint, or None if it is not evaluated."""
    path = run.scores_path("target", "test")
    card = Metrics.load(path) if path.is_file() else None
    return card if card is not None and card.protocol is not None and card.protocol.step == run.step else None


def _parts(card: Metrics) -> list[Section]:
    """Scores by distance, and by weather if the frames state it."""
    tables = []
    for kind, parts in card.part_miou.items():
        rows = [
            [name, f"{int(card.parts[kind][name]['3d'].sum()):,}", *(_percent(means[key]) for key in OUTPUTS)]
            for name, means in parts.items()
        ]
        tables.append(Table(header=[kind, "points", *OUTPUTS.values()], rows=rows))
    text = "Mean IoU in per cent over the points of each part alone; the distance is that from the sensor."
    return [Section(heading="Scores by distance and weather", text=text, parts=tables)] if tables else []


def _frames(run: TrainedRun, rule: FusionRule) -> list[Section]:
    """Input and predictions of a few frames, evenly spread over the target's test split."""
    few = spread_frames(run.domain("target", "test"))
    predictions = predict_frames(run.network, few, fusion=rule, description="report")
    return [_frame(run, few, number, prediction) for number, prediction in enumerate(predictions)]


def _frame(run: TrainedRun, domain: Domain, number: int, prediction: FramePrediction) -> Section:
    frame, row = domain.load(number), domain.frames[number]
    classes = run.network.classes
    predicted = prediction.decided
    parts = [
        *(_image(run, domain, domain.features, frame) if domain.features is not None else []),
        *(
            Picture(png, f"LiDAR points over the image of {camera}.")
            for camera, png in predictions_over_images(domain, frame, predicted, run.config.extract, classes)
        ),
        Picture(
            figures.birds_eye_view(frame.facing(domain.index), frame.labels, predicted, classes),
            "The same points from above; the triangle is the sensor."
            + ("" if domain.every_point else " Only points that a camera sees are kept."),
        ),
        *(_around(domain, number) if len(domain.index.cameras) > 1 else []),
    ]
    facts = domain.index.frames
    return Section(
        heading=f"Test frame {number + 1}: {facts.scene[row]}, {facts.location[row]}",
        text=f"Scene: {facts.description[row]}.",
        legend=legend(classes),
        parts=parts,
    )


def _around(domain: Domain, number: int) -> list[Picture]:
    """The whole sweep, coloured by how many of the frame's cameras see each point."""
    whole = dataclasses.replace(domain, labelled=False, every_point=True).load(number)
    cameras = np.bincount(whole.projection_point, minlength=len(whole.points))
    names = ", ".join(domain.index.cameras)
    caption = f"All points of the sweep from above, by how many cameras see them ({names})."
    return [Picture(figures.seen_from_above(whole.points, cameras), caption)]


def _image(run: TrainedRun, domain: Domain, features: FeatureSource, frame: Frame) -> list[Picture]:
    """The image of the first view, two feature maps of it, and its agents."""
    settings = run.config.extract
    images = read_images(settings, domain, features, frame)
    shown: dict[str, np.ndarray] = {"image, as the model reads it": images.pictures[0]}
    maps = [tap for tap, spec in features.taps.items() if spec.dtype != "uint8"]
    for tap in [tap for tap in maps if tap in ("up1", "up2")] or maps[:2]:
        shown[f"features of {tap}: first three components"] = figures.feature_colours(images.stored.maps[tap][0])
    shown[f"the {features.agents} agents"] = figures.agent_colours(images.assignment[0])
    caption = (
        "What stage one stored of this image. Equal colours in a feature picture mean equal features; in the agent"
        " picture each agent, a group of pixels with similar features, has its own colour."
    )
    return [Picture(figures.image_row(shown), caption)]


def _training(run: TrainedRun) -> Section:
    records = read_log(run.folder)
    steps = [record for record in records if "loss" in record]
    names = [name for name in steps[0] if name not in LOSS_NAMES_LEFT_OUT] if steps else []
    losses = {name: [float(record[name]) for record in steps] for name in names}
    metric = run.domains.best_metric()
    scores = {record["step"]: record["validation"]["miou"] for record in records if "validation" in record}
    validation = {step: float(miou[metric]) for step, miou in scores.items() if miou[metric] is not None}
    png = figures.loss_curves([record["step"] for record in steps], losses, validation)
    return Section(
        heading="Training",
        text="The loss terms over the steps, and the score on the held-out split that the best checkpoint was chosen"
        " on. Neither uses the test split.",
        parts=[Picture(png, "Each curve is a running mean over 2 % of the steps.")],
    )


def _confusion(card: Metrics) -> Section:
    known: list[Modality] = [output for output in ("fused", "xm", "3d") if output in card.confusion]
    output = known[0]
    counts = card.confusion[output][:, : len(card.classes)]
    return Section(
        heading="Confusion",
        text="Which class is taken for which, in per cent of the true class's points.",
        parts=[
            Picture(
                figures.confusion_picture(counts, card.classes),
                f"Rows: truth. Columns: prediction ({OUTPUTS[output]}).",
            )
        ],
    )


def _protocol(run: TrainedRun, card: Metrics) -> Section:
    protocol = {} if card.protocol is None else dataclasses.asdict(card.protocol)
    parts = [facts_table({**protocol, "frames": card.frames, "points": card.points, "absent classes": card.absent})]
    if run.config.fusion.image and run.domains.index(run.config.data.target.dataset).cameras:
        fingerprint = run.domains.fingerprint(run.config.data.target.dataset)
        parts.append(facts_table({f"features: {key}": value for key, value in _flat(fingerprint)}))
    return Section(
        heading="Protocol and fingerprint",
        text="Everything this score depends on: how it was counted, and how the cached features were made.",
        parts=parts,
    )


def _flat(values: object, prefix: str = "") -> Sequence[tuple[str, object]]:
    if not isinstance(values, dict):
        return [(prefix, values)]
    return [pair for key, value in values.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
