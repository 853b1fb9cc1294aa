"""Predictions of a few frames over their images, for the report and for the loggers of a training."""

import io
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from ...errors import Xd3dError
from ...stages.datasets.frames import Frame
from ...stages.evaluate.settings import FusionRule
from ...stages.extract.images import PictureSource
from ...stages.extract.settings import ExtractSettings
from ...stages.predict.inference import predict_frames
from ...stages.train.domain import Domain
from ...stages.train.network import Network
from .figures import birds_eye_view, points_over_image

__all__ = ["predictions_over_images", "spread_frames", "spread_positions", "validation_pictures"]

log = logging.getLogger(__name__)

SHOWN_FRAMES = 3


def spread_positions(domain: Domain, count: int) -> list[int]:
    """Returns the positions of at most ``count`` frames evenly spread over ``domain``."""
    return list(map(int, np.unique(np.linspace(0, len(domain) - 1, count + 2).round().astype(int)[1:-1])))


def spread_frames(domain: Domain) -> Domain:
    """Returns ``domain`` with a few of its frames, evenly spread."""
    return replace(domain, frames=domain.frames[spread_positions(domain, SHOWN_FRAMES)])


def predictions_over_images(
    domain: Domain,
    frame: Frame,
    predicted: Int[np.ndarray, " points"],
    extract: ExtractSettings,
    classes: Sequence[str],
) -> list[tuple[str, bytes]]:
    """Returns the camera of each image of ``frame`` and a PNG of its points by truth, prediction and error."""
    settings = extract.for_dataset(domain.index.dataset)
    source = PictureSource(index=domain.index, image_size=settings.image_size, decoding=settings.decoding)
    pictures, _ = source.read([int(row) for row in frame.image_rows])
    shown = []
    for view, picture in enumerate(pictures):
        in_view = frame.projection_view == view
        points, uv = frame.projection_point[in_view], frame.projection_uv[in_view]
        png = points_over_image(picture.transpose(1, 2, 0), uv, frame.labels[points], predicted[points], classes)
        shown.append((str(domain.index.images.camera[frame.image_rows[view]]), png))
    return shown


def validation_pictures(
    network: Network, domain: Domain, *, extract: ExtractSettings, fusion: FusionRule
) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
    """Returns pictures of the predictions of a few frames by name; from above where a frame has no image.

    A frame that cannot be drawn is left out with a warning: it must not end a training.
    """
    few, pictures = spread_frames(domain), {}
    try:
        predictions = predict_frames(network, few, fusion=fusion, workers=0, description="pictures")
        for number, prediction in enumerate(predictions):
            frame, predicted = few.load(number), prediction.decided
            drawn = predictions_over_images(few, frame, predicted, extract, network.classes)
            if not drawn:
                points = frame.facing(few.index)
                drawn = [("above", birds_eye_view(points, frame.labels, predicted, network.classes))]
            for view, png in drawn:
                with Image.open(io.BytesIO(png)) as picture:
                    pictures[f"frames/{number + 1} {view}"] = np.array(picture.convert("RGB"))
    except Xd3dError as error:
        log.warning("Pictures of this validation are missing: %s", error)
    return pictures
