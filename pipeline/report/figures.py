"""The pictures of the report, drawn from arrays to PNG bytes, and the colours of the classes."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

from ...stages.datasets.labels import IGNORE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "UNLABELLED",
    "agent_colours",
    "birds_eye_view",
    "class_colours",
    "confusion_picture",
    "draw_shares",
    "feature_colours",
    "image_row",
    "iou_bars",
    "labels_from_above",
    "loss_curves",
    "new_figure",
    "png_bytes",
    "points_over_image",
    "seen_from_above",
]

RIGHT = (0.62, 0.78, 0.66)
WRONG = (0.84, 0.15, 0.16)
UNLABELLED = (0.75, 0.75, 0.75)
SEEN_BY = {"no camera": "lightgrey", "one camera": "tab:blue", "two or more": "tab:orange"}  #: colours of points
FAMILIAR = {
    "vehicle": (0.12, 0.35, 0.85),
    "driveable_surface": (0.50, 0.35, 0.60),
    "sidewalk": (0.90, 0.45, 0.85),
    "terrain": (0.72, 0.62, 0.30),
    "manmade": (0.40, 0.40, 0.42),
    "vegetation": (0.25, 0.60, 0.20),
}


def class_colours(classes: Sequence[str]) -> Float[np.ndarray, "classes 3"]:
    """Returns RGB in [0, 1] for each class; unknown names get distinct colours in order."""
    from matplotlib import colormaps

    spread = np.vstack([colormaps[palette](np.arange(20))[:, :3] for palette in ("tab20", "tab20b", "tab20c")])
    return np.array([FAMILIAR.get(name, spread[number % len(spread)]) for number, name in enumerate(classes)])


def feature_colours(feature_map: Float[np.ndarray, "channels height width"]) -> Float[np.ndarray, "height width 3"]:
    """Returns the first three principal components of a map, each stretched from its 2nd to its 98th percentile."""
    channels, height, width = feature_map.shape
    cells = feature_map.reshape(channels, -1).T.astype(np.float64)
    cells = (cells - cells.mean(0)) / (cells.std(0) + 1e-6)
    _, _, directions = np.linalg.svd(cells, full_matrices=False)
    parts = cells @ directions[:3].T
    low, high = np.percentile(parts, [2, 98], axis=0)
    parts = np.clip((parts - low) / np.maximum(high - low, 1e-9), 0, 1).reshape(height, width, -1)
    return np.pad(parts, ((0, 0), (0, 0), (0, 3 - parts.shape[2])))


def agent_colours(assignment: Float[np.ndarray, "agents height width"]) -> Float[np.ndarray, "height width 3"]:
    """Returns every cell in the colour of its dominant agent; the colours are arbitrary, fixed and distinct."""
    generator = np.random.default_rng(0)
    colours = generator.uniform(0.15, 1.0, (len(assignment), 3))
    return colours[assignment.argmax(0)]


def image_row(pictures: Mapping[str, np.ndarray]) -> bytes:
    """Draws titled pictures [H, W, 3] side by side without interpolation."""
    figure = new_figure(4.4 * len(pictures), 2.9)
    for number, (title, picture) in enumerate(pictures.items()):
        axes = figure.add_subplot(1, len(pictures), number + 1)
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        _hide_ticks(axes, title)
    return png_bytes(figure)


def points_over_image(
    image: UInt8[np.ndarray, "height width 3"],
    uv: Float[np.ndarray, "points 2"],
    labels: Int[np.ndarray, " points"],
    predicted: Int[np.ndarray, " points"],
    classes: Sequence[str],
) -> bytes:
    """Draws LiDAR points on the image, coloured by truth, prediction, and error; ``uv`` in fractions of the image."""
    height, width = image.shape[:2]
    figure = new_figure(13.2, 3.0)
    for number, (title, colours, shown) in enumerate(_views(labels, predicted, classes)):
        axes = figure.add_subplot(1, 3, number + 1)
        axes.imshow(image, alpha=0.55)
        axes.scatter(uv[shown, 0] * width, uv[shown, 1] * height, c=colours[shown], s=4.0, linewidths=0)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        _hide_ticks(axes, title)
    return png_bytes(figure)


def birds_eye_view(
    points: Float[np.ndarray, "points 3"],
    labels: Int[np.ndarray, " points"],
    predicted: Int[np.ndarray, " points"],
    classes: Sequence[str],
) -> bytes:
    """Draws the same points from above, the sensor at the bottom centre (x to the right, y ahead; metres)."""
    side = float(np.percentile(np.abs(points[:, 0]), 98)) + 2 if len(points) else 10.0
    low, high = np.percentile(points[:, 1], [1, 98]) if len(points) else (0.0, 10.0)
    low, high = min(float(low), 0.0) - 2, max(float(high), 0.0) + 2
    figure = new_figure(13.2, min(max(4.2 * (high - low) / (2 * side), 2.5), 6.0) + 0.8)
    for number, (title, colours, shown) in enumerate(_views(labels, predicted, classes)):
        axes = figure.add_subplot(1, 3, number + 1)
        axes.scatter(points[shown, 0], points[shown, 1], c=colours[shown], s=4.0, linewidths=0)
        axes.plot(0, 0, marker="^", color="black", markersize=7)
        axes.set_xlim(-side, side)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("metres to the right", fontsize=8)
        axes.set_ylabel("metres ahead", fontsize=8)
    return png_bytes(figure)


def seen_from_above(points: Float[np.ndarray, "points 3"], cameras: Int[np.ndarray, " points"]) -> bytes:
    """Draws a whole sweep from above, the sensor in the middle; ``cameras``: how many see each point."""
    figure = new_figure(7.0, 6.0)
    axes = figure.add_subplot(1, 1, 1)
    reach = float(np.percentile(np.abs(points[:, :2]).max(1), 98)) + 2 if len(points) else 10.0
    for number, (name, colour) in enumerate(SEEN_BY.items()):
        rows = np.minimum(cameras, 2) == number
        label = f"{name} ({100 * float(rows.mean()) if len(rows) else 0.0:.0f} %)"
        axes.scatter(points[rows, 0], points[rows, 1], color=colour, s=2.0, linewidths=0, label=label)
    axes.legend(fontsize=8, loc="upper right", markerscale=4)
    return _around_sensor(figure, axes, reach, fontsize=8)


def labels_from_above(
    points: Float[np.ndarray, "points 3"], labels: Integer[np.ndarray, " points"], classes: Sequence[str]
) -> bytes:
    """Draws a whole sweep from above, the sensor in the middle; label 0 is unlabelled, class ``c`` is ``c + 1``."""
    palette = np.vstack([UNLABELLED, class_colours(classes)])
    figure = new_figure(9.0, 8.0)
    axes = figure.add_subplot(1, 1, 1)
    finite = np.isfinite(points).all(1)
    axes.scatter(points[finite, 0], points[finite, 1], c=palette[labels[finite]], s=1.0, linewidths=0)
    reach = max(float(np.percentile(np.abs(points[finite, :2]).max(1), 99)), 1.0) if finite.any() else 10.0
    for label in np.unique(labels[finite]):
        name = classes[label - 1] if label else "unlabelled"
        axes.scatter([], [], color=palette[label], label=f"{name} ({100 * (labels == label).mean():.0f} %)")
    axes.legend(fontsize=8, loc="upper right")
    return _around_sensor(figure, axes, reach)


def _around_sensor(figure: "Figure", axes: "Axes", reach: float, **label: Any) -> bytes:
    """Returns the PNG of a sweep from above: the sensor in the middle, ``reach`` metres to each side."""
    axes.plot(0, 0, marker="^", color="black", markersize=7)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.set_xlabel("x, metres", **label)
    axes.set_ylabel("y, metres", **label)
    return png_bytes(figure)


def loss_curves(steps: Sequence[int], losses: Mapping[str, Sequence[float]], validation: Mapping[int, float]) -> bytes:
    """Draws each loss, smoothed over 2 % of the steps, and the validation mIoU."""
    figure = new_figure(13.2, 3.6)
    axes = figure.add_subplot(1, 2, 1)
    window = max(1, len(steps) // 50)
    for name, values in losses.items():
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], np.maximum(smooth, 1e-6), label=name, linewidth=1.2)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_title("Training losses (log scale)", fontsize=10)
    axes.legend(fontsize=7, ncols=2)
    axes = figure.add_subplot(1, 2, 2)
    axes.plot(list(validation), [100 * value for value in validation.values()], marker="o", color="tab:green")
    axes.set_xlabel("step")
    axes.set_ylabel("mIoU, %")
    axes.set_ylim(0, 100)
    axes.set_title("Mean IoU on the validation split", fontsize=10)
    return png_bytes(figure)


def iou_bars(iou: Mapping[str, Mapping[str, float | None]], classes: Sequence[str]) -> bytes:
    """Draws the IoU per class in per cent, one bar per output (2D, 3D, xM, fused); absent classes have no bar."""
    figure = new_figure(13.2, 3.4)
    axes = figure.add_subplot(1, 1, 1)
    width = 0.8 / max(len(iou), 1)
    for number, (output, values) in enumerate(iou.items()):
        heights = [100 * (values.get(name) or 0.0) for name in classes]
        positions = np.arange(len(classes)) + (number - (len(iou) - 1) / 2) * width
        bars = axes.bar(positions, heights, width * 0.94, label=output)
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(np.arange(len(classes)), classes, fontsize=9)
    axes.set_ylim(0, 108)
    axes.set_ylabel("IoU, %")
    axes.legend(fontsize=8)
    return png_bytes(figure)


def confusion_picture(matrix: Int[np.ndarray, "classes classes"], classes: Sequence[str]) -> bytes:
    """Draws the confusion matrix: rows are true classes, columns predictions; in per cent of the row."""
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure = new_figure(6.4, 5.0)
    axes = figure.add_subplot(1, 1, 1)
    draw_shares(axes, shares, dark=55, fontsize=8, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return png_bytes(figure)


def draw_shares(
    axes: "Axes", shares: Float[np.ndarray, "rows columns"], *, dark: int, fontsize: int, **options: Any
) -> None:
    """Draws a heat map of per cent with the number in each cell, white above ``dark``; NaN leaves a cell empty."""
    axes.imshow(shares, vmin=0, vmax=100, **options)
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share):
            colour = "white" if share > dark else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=fontsize, color=colour)


def _views(
    labels: Int[np.ndarray, " points"], predicted: Int[np.ndarray, " points"], classes: Sequence[str]
) -> list[tuple[str, Float[np.ndarray, "points 3"], Bool[np.ndarray, " points"]]]:
    """Returns title, colour of each point, and which points to draw, for truth, prediction and errors."""
    palette = np.vstack([class_colours(classes), UNLABELLED])
    labelled = labels != IGNORE
    truth = palette[np.where(labelled, labels, len(classes))]
    errors = np.where((labels == predicted)[:, None], RIGHT, WRONG)
    all_points = np.ones(len(labels), bool)
    share = 100 * float((labels == predicted)[labelled].mean()) if labelled.any() else 0.0
    return [
        ("truth (grey: not scored)", truth, all_points),
        ("prediction", palette[predicted], all_points),
        (f"right in green, wrong in red ({share:.0f} % right)", errors, labelled),
    ]


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _hide_ticks(axes: "Axes", title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def png_bytes(figure: "Figure") -> bytes:
    """Returns the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
