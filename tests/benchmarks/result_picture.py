"""Draws the README's picture from the folder of a demo: what stage one stores, and what both networks predict.

python tests/benchmarks/result_picture.py xd3d-demo docs/images/result.jpg
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from xd3d.pipeline.report.attention import read_images
from xd3d.pipeline.report.figures import (
    UNLABELLED,
    agent_colours,
    class_colours,
    feature_colours,
    new_figure,
    png_bytes,
)
from xd3d.pipeline.runs import TrainedRun
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.predict.inference import predict_frames

SCENES = 3  #: of the test split, at equal distances
WIDTH = 1400
TITLES = ("image", "features", "object agents", "truth", "LiDAR alone", "with cached features")


def main(demo: Path, picture: Path) -> None:
    """Draws one row per scene."""
    workspace = Workspace(home=demo.absolute() / "work")
    folders = (path.parent for path in sorted((workspace.home / "runs").glob("*/run.json")))
    runs = {run.config.fusion.image: run for run in (TrainedRun.open(workspace, folder) for folder in folders)}
    domain = runs[True].domain("target", "test")
    predicted = [list(predict_frames(runs[key].network, runs[key].domain("target", "test"))) for key in (False, True)]
    palette = np.vstack([class_colours(runs[True].network.classes), UNLABELLED])
    figure = new_figure(13.2, 1.55 * SCENES + 0.25)
    for row, position in enumerate(np.linspace(0, len(domain) - 1, SCENES + 2).round().astype(int)[1:-1]):
        frame = domain.load(int(position))
        images = read_images(runs[True].config.extract, domain, domain.features, frame)
        image = images.pictures[0]
        finest = max((values[0] for tap, values in images.stored.maps.items() if tap != "rgb"), key=lambda v: v[0].size)
        shown = [image, feature_colours(finest), agent_colours(images.assignment[0])]
        classes = [
            np.where(frame.labels < 0, len(palette) - 1, frame.labels),
            *(each[position].decided for each in predicted),
        ]
        for column, title in enumerate(TITLES):
            axes = figure.add_subplot(SCENES, len(TITLES), row * len(TITLES) + column + 1, xticks=[], yticks=[])
            if row == 0:
                axes.set_title(title, fontsize=10)
            if column < len(shown):
                axes.imshow(shown[column], interpolation="nearest", aspect="auto")
                continue
            height, width = image.shape[:2]
            u, v = frame.projection_uv.T
            colours = palette[classes[column - len(shown)][frame.projection_point]]
            axes.imshow(image, alpha=0.4, aspect="auto")
            axes.scatter(u * width, v * height, c=colours, s=1.6, linewidths=0)
            axes.set(xlim=(0, width), ylim=(height, 0))
    drawn = Image.open(io.BytesIO(png_bytes(figure))).convert("RGB")
    drawn.resize((WIDTH, WIDTH * drawn.height // drawn.width), Image.Resampling.LANCZOS).save(picture, quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
