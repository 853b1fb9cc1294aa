"""Plots of the scores, beside the tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..report.figures import new_figure, png_bytes
from .rows import MEAN, ScoreTable, summarise
from .tables import COMPARED, NAMES
from .variants import BASELINE, GROUPS, SHORTER

__all__ = ["PLOTS"]

COLOURS = {BASELINE: "0.6", "oracle": "black"}


def _plot_scores(scores: ScoreTable) -> bytes:
    """Bars with sample deviations for each shift and main variant, a row per output."""
    figure = new_figure(13.2, 3.7 * len(COMPARED))
    names = [v.name for group in GROUPS if group.main for v in group.variants if v.name in scores.variants]
    width = 0.84 / max(len(names), 1)
    for row, output in enumerate(COMPARED):
        axes = figure.add_subplot(len(COMPARED), 1, row + 1)
        for index, name in enumerate(names):
            offset = (index - (len(names) - 1) / 2) * width
            values = [scores.scores(name, output, column) for column in scores.columns]
            _bars(axes.bar, offset, values, 0.92 * width, "yerr", label=name, color=COLOURS.get(name))
        axes.set_xticks(range(len(scores.columns)), scores.columns)
        axes.set_xlim(-0.6, len(scores.columns) - 0.4)
        axes.set_ylabel(f"{NAMES[output]} mIoU, %")
        if row == 0 and names:
            axes.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.22))
    return png_bytes(figure)


def _plot_sweeps(scores: ScoreTable) -> bytes:
    """Bars of what each variant of a sweep gains over the method in as many steps, mean over the shifts."""
    swept = [v.name for group in GROUPS if not group.main for v in group.variants if v.name in scores.variants]
    names = [name for name in swept if name != SHORTER]
    width = 0.8 / len(COMPARED)
    figure = new_figure(13.2, 1.4 + 0.15 * len(COMPARED) * max(len(names), 1))
    axes = figure.add_subplot(1, 1, 1)
    for index, output in enumerate(COMPARED):
        offset = (index - (len(COMPARED) - 1) / 2) * width
        gains = [scores.gains(name, output, MEAN, over=SHORTER) for name in names]
        _bars(axes.barh, offset, gains, 0.9 * width, "xerr", label=NAMES[output])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"points of mIoU above {SHORTER}, mean over the shifts")
    axes.legend(fontsize=8)
    return png_bytes(figure)


def _bars(
    draw: Callable[..., Any],
    offset: float,
    values: Sequence[Mapping[int, float]],
    width: float,
    error: str,
    **options: Any,
) -> None:
    """Draws the mean of each of ``values`` at its index plus ``offset``, with its sample deviation."""
    known = [(index + offset, *summary) for index, each in enumerate(values) if (summary := summarise(each))]
    positions, means = [position for position, _, _ in known], [mean for _, mean, _ in known]
    options[error] = [deviation or 0.0 for _, _, deviation in known]
    draw(positions, means, width, error_kw={"linewidth": 0.8}, **options)


PLOTS: Mapping[str, Callable[[ScoreTable], bytes]] = {"scores": _plot_scores, "sweeps": _plot_sweeps}
