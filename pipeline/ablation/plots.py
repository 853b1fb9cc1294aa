"""The plots beside the tables: scores by shift, and what each sweep changes; PNG bytes from a board."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..report.figures import new_figure, png_bytes
from .board import MEAN, Board, Summary
from .variants import BASELINE, GROUPS, SHORTER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PLOTS"]

READINGS = {"3d": "3D", "xm": "xM", "fused": "fused"}
COLOURS = {BASELINE: "0.6", "oracle": "black"}  #: of those that the others are measured by


def _scores(board: Board) -> bytes:
    """Bars a shift for each main variant, in 3D, in xM and fused, with the deviation over the seeds."""
    figure = new_figure(13.2, 3.7 * len(READINGS))
    names = [v.name for group in GROUPS if group.tabled for v in group.variants if v.name in board.variants]
    for row, (reading, title) in enumerate(READINGS.items()):
        axes = figure.add_subplot(len(READINGS), 1, row + 1)
        width = 0.84 / max(len(names), 1)
        for place, name in enumerate(names):
            summaries = [Summary.of(board.scores(name, reading, column)) for column in board.columns]
            centres = [at + (place - (len(names) - 1) / 2) * width for at in range(len(summaries))]
            _bars(axes, centres, summaries, width, name)
        axes.set_xticks(range(len(board.columns)), board.columns)
        axes.set_xlim(-0.6, len(board.columns) - 0.4)
        axes.set_ylabel(f"{title} mIoU, %")
        if row == 0 and names:
            axes.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.22))
    return png_bytes(figure)


def _sweeps(board: Board) -> bytes:
    """What each variant of a sweep gains over the method in as many steps, mean over the shifts, by reading."""
    names = [
        v.name
        for group in GROUPS
        if not group.tabled
        for v in group.variants
        if v.name in board.variants and v.name != SHORTER
    ]
    width = 0.8 / len(READINGS)
    figure = new_figure(13.2, 1.4 + 0.15 * len(READINGS) * max(len(names), 1))
    axes = figure.add_subplot(1, 1, 1)
    for place, (reading, title) in enumerate(READINGS.items()):
        found = {name: Summary.of(board.gains(name, reading, MEAN, over=SHORTER)) for name in names}
        at = [number + (place - (len(READINGS) - 1) / 2) * width for number, name in enumerate(names) if found[name]]
        known = [summary for summary in found.values() if summary]
        errors = [summary.deviation or 0.0 for summary in known]
        means = [summary.mean for summary in known]
        axes.barh(at, means, 0.9 * width, xerr=errors, label=title, error_kw={"linewidth": 0.8})
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"points of mIoU above {SHORTER}, mean over the shifts")
    axes.legend(fontsize=8)
    return png_bytes(figure)


def _bars(axes: "Axes", centres: list[float], summaries: "list[Summary | None]", width: float, name: str) -> None:
    known = [(at, summary) for at, summary in zip(centres, summaries, strict=True) if summary]
    axes.bar(
        [at for at, _ in known],
        [summary.mean for _, summary in known],
        0.92 * width,
        yerr=[summary.deviation or 0.0 for _, summary in known],
        label=name,
        color=COLOURS.get(name),
        error_kw={"linewidth": 0.8},
    )


PLOTS: Mapping[str, Callable[[Board], bytes]] = {"scores": _scores, "sweeps": _sweeps}
