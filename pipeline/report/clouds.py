"""Interactive point clouds of a report: the data of a few frames, embedded with the script that draws them."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files

import numpy as np
from PIL import Image

from ...errors import RunError
from ...stages.datasets.frames import Frame
from ...stages.datasets.labels import IGNORE
from ...stages.evaluate.scores import FramePrediction
from ...stages.evaluate.settings import FusionRule
from ...stages.predict.inference import predict_frames
from ...stages.train.domain import Domain
from ..runs import TrainedRun
from .attention import read_images
from .figures import class_colours
from .frames import spread_positions
from .page import Section, Widget, legend

__all__ = ["clouds_section", "run_label"]

FRAMES = 4  #: evenly spread over the test split
MAX_POINTS = 60_000  #: points of a frame beyond this are thinned out evenly
NO_AGENT = 65535
PICTURE_WIDTH = 960


def run_label(run: TrainedRun) -> str:
    """Returns the name of a run where the report compares two."""
    return f"{run.folder.name} (fusion.variant={run.config.fusion.variant})"


def clouds_section(run: TrainedRun, rule: FusionRule, other: TrainedRun | None = None) -> Section:
    """Returns the section with the clouds of a few test frames, predicted by ``run``, and by ``other`` beside it.

    ``rule`` fuses the predictions of ``run``; those of ``other`` have its own.

    Raises:
        RunError: ``other`` has other test frames or other classes.
    """
    domain = run.domain("target", "test")
    chosen = spread_positions(domain, FRAMES)
    runs = [(run, rule), *([] if other is None else [(other, other.config.evaluate.fusion)])]
    predicted = [_predicted(each, fusion, domain, chosen, run) for each, fusion in runs]
    frames = [
        _frame(run, domain, position, [each[number] for each in predicted]) for number, position in enumerate(chosen)
    ]
    classes = run.network.classes
    data = {
        "classes": classes,
        "colours": (255 * class_colours(classes)).round().astype(int).tolist(),
        "runs": [run_label(each) for each, _ in runs],
        "frames": frames,
    }
    style, script = ((files(__package__) / name).read_text(encoding="utf-8") for name in ("clouds.css", "clouds.js"))
    embedded = json.dumps(data).replace("<", "\\u003c")
    html = (
        f'<style>{style}</style><div id="clouds"></div>'
        f'<script type="application/json" id="clouds-data">{embedded}</script><script>{script}</script>'
    )
    text = (
        "The points of test frames in three dimensions, by truth, prediction, errors, object agent or distance from the"
        " sensor. The mouse over a point shows its classes and their probabilities."
    )
    return Section(heading="Point clouds", text=text, legend=legend(classes), parts=[Widget(html=html)])


def _predicted(
    run: TrainedRun, fusion: FusionRule, domain: Domain, chosen: list[int], first: TrainedRun
) -> list[FramePrediction]:
    own = run.domain("target", "test")
    if run.network.classes != first.network.classes or own.index.digest != domain.index.digest:
        raise RunError(
            f"{run.folder.name} and {first.folder.name} have different classes or test data"
            f" ({', '.join(run.network.classes)}; {', '.join(first.network.classes)}) and cannot be compared"
        )
    few = replace(own, frames=domain.frames[chosen], every_point=domain.every_point)
    return list(predict_frames(run.network, few, fusion=fusion, description="point clouds"))


def _frame(
    run: TrainedRun, domain: Domain, position: int, predictions: Sequence[FramePrediction]
) -> Mapping[str, object]:
    frame, row = domain.load(position), domain.frames[position]
    agents, picture = _image(run, domain, frame)
    kept = np.unique(np.linspace(0, len(frame.points) - 1, min(len(frame.points), MAX_POINTS)).astype(int))
    return {
        "name": f"{domain.index.frames.scene[row]}, {domain.index.frames.location[row]}",
        "points": _encode(frame.facing(domain.index)[kept], "<f4"),
        "truth": _encode(np.where(frame.labels == IGNORE, 255, frame.labels)[kept], "u1"),
        "agents": _encode(agents[kept], "<u2"),
        "picture": picture,
        "runs": [
            {
                "classes": _encode(prediction.decided[kept], "u1"),
                "probabilities": _encode(np.round(255 * _probabilities(prediction)[kept]), "u1"),
            }
            for prediction in predictions
        ],
    }


def _probabilities(prediction: FramePrediction) -> np.ndarray:
    fused = prediction.probabilities_fused
    return prediction.probabilities_3d if fused is None else fused


def _image(run: TrainedRun, domain: Domain, frame: Frame) -> tuple[np.ndarray, str]:
    """The agent of each point (``NO_AGENT`` where no camera sees it), and the first camera's picture as JPEG."""
    agents = np.full(len(frame.points), NO_AGENT)
    if domain.features is None or not len(frame.image_rows):
        return agents, ""
    images = read_images(run.config.extract, domain, domain.features, frame)
    agents[frame.projection_point] = images.agents_of(frame)[frame.projection_point]
    picture, buffer = Image.fromarray(images.pictures[0]), io.BytesIO()
    picture.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
    picture.save(buffer, "JPEG", quality=85)
    return agents, base64.b64encode(buffer.getvalue()).decode()


def _encode(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(dtype).tobytes()).decode()
