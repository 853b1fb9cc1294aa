"""The claims about the method, the Markdown tables of ``results.md``, and the plots beside them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..report.figures import new_figure, png_bytes
from .rows import MEAN, OUTPUTS, ScoreTable, summarise
from .variants import BASELINE, GROUPS, REFERENCE, SHORTER, VARIANTS, Variant

__all__ = [
    "CLAIMS",
    "PLOTS",
    "Claim",
    "claims_table",
    "class_table",
    "format_values",
    "gain_tables",
    "headline_table",
    "loss_table",
    "main_tables",
    "markdown",
    "sweep_tables",
]

NAMES = {"2d": "2D", "3d": "3D", "3d_lidar_only": "3D, LiDAR only", "xm": "xM", "fused": "fused"}
COMPARED = ("3d", "xm", "fused")  #: outputs in which variants are compared
COLOURS = {BASELINE: "0.6", "oracle": "black"}  #: of the bars; the others are matplotlib's


@dataclass(frozen=True, kw_only=True)
class Claim:
    """``variant`` in ``output`` is at least ``least`` points above ``over`` in the best of ``over_outputs``.

    With ``least`` 0 it is above by any amount. Without ``over_outputs`` both are compared in ``output``.
    """

    label: str
    over: str
    output: str
    least: float = 0.0
    variant: str = REFERENCE
    over_outputs: Sequence[str] = ()

    def gains(self, scores: ScoreTable, shift: str) -> dict[int, float]:
        """Returns the gain by seed."""
        gains = [
            scores.gains(self.variant, self.output, shift, over=self.over, over_output=output)
            for output in self.over_outputs or (self.output,)
        ]
        return {seed: min(each[seed] for each in gains) for seed in sorted(set.intersection(*map(set, gains)))}

    def holds(self, gain: float) -> bool:
        """Whether a mean gain of ``gain`` points is enough."""
        return gain >= self.least if self.least else gain > 0


CLAIMS = (
    Claim(label="3D of full above 3d-only by 8", over=BASELINE, output="3d", least=8.0),
    Claim(label="fused of full above xM of image by 5", over="image", output="fused", over_outputs=("xm",), least=5.0),
    Claim(label="trained above random diffusion weights by 2, 3D", over="full-random-weights", output="3d", least=2.0),
    Claim(label="the same, fused", over="full-random-weights", output="fused", least=2.0),
    Claim(label="above the image tap alone by 2, 3D", over="full-rgb-only", output="3d", least=2.0),
    Claim(label="the same, fused", over="full-rgb-only", output="fused", least=2.0),
    Claim(label="without a camera at most 1 below 3d-only", over=BASELINE, output="3d_lidar_only", least=-1.0),
    Claim(
        label="fused at most 1 below the best of 2D, 3D and LiDAR only",
        over=REFERENCE,
        output="fused",
        over_outputs=("2d", "3d", "3d_lidar_only"),
        least=-1.0,
    ),
    Claim(label="UDA above full, 3D", variant="uda", over=REFERENCE, output="3d"),
    Claim(label="the same, fused", variant="uda", over=REFERENCE, output="fused"),
    Claim(label="UDA with a teacher above UDA, 3D", variant="uda-pl", over="uda", output="3d"),
    Claim(label="the same, fused", variant="uda-pl", over="uda", output="fused"),
    Claim(
        label="LiDAR alone, pretrained on images, above 3d-only by 2",
        variant="pretrain",
        over=BASELINE,
        output="3d",
        least=2.0,
    ),
)


def format_values(values: dict[int, float], *, signed: bool = False) -> str:
    """Returns values by seed as mean ± sample deviation, such as ``45.1 ± 0.8``; ``-`` without values."""
    summary = summarise(values)
    if summary is None:
        return "-"
    mean, deviation = summary
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return text if deviation is None else f"{text} ± {deviation:.1f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; the first column is aligned left, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def headline_table(scores: ScoreTable) -> str:
    """Returns the method in one table: LiDAR alone, cached features, adaptation, and the target's labels."""
    lines = (
        ("LiDAR alone", BASELINE, "3d"),
        ("with cached features, no camera at test", REFERENCE, "3d_lidar_only"),
        ("with cached features, 3D", REFERENCE, "3d"),
        ("with cached features, fused", REFERENCE, "fused"),
        ("and the target's unlabelled frames, fused", "uda", "fused"),
        ("trained on the target's labels, fused", "oracle", "fused"),
    )
    rows = [
        [label, *(format_values(scores.scores(variant, output, column)) for column in scores.columns)]
        for label, variant, output in lines
        if variant in scores.variants
    ]
    return markdown(["mIoU, %", *scores.columns], rows)


def claims_table(scores: ScoreTable, fresh: Collection[str]) -> str:
    """Returns the claims with their gain and verdict on each shift; ``fresh`` shifts are counted separately."""
    rows = []
    for claim in CLAIMS:
        summaries = {shift: summarise(claim.gains(scores, shift)) for shift in scores.shifts}
        gains = {shift: summary[0] for shift, summary in summaries.items() if summary}
        verdicts = {shift: claim.holds(gain) for shift, gain in gains.items()}
        cells = [
            f"{gains[shift]:+.1f} {'yes' if verdicts[shift] else 'no'}" if shift in gains else "-"
            for shift in scores.shifts
        ]
        for new in (False, True):
            chosen = [holds for shift, holds in verdicts.items() if (shift in fresh) == new]
            cells.append(f"{sum(chosen)} of {len(chosen)}" if chosen else "-")
        rows.append([claim.label, *cells])
    return markdown(["claim (points, mean over seeds)", *scores.shifts, "holds on old", "holds on new"], rows)


def loss_table(scores: ScoreTable) -> str:
    """Returns the loss by each shift, source test less target test, of the baseline and the method."""
    header = ["network", "source test", *(f"{shift}: target (loss)" for shift in scores.shifts)]
    rows = []
    for name, output in ((BASELINE, "3d"), *((REFERENCE, output) for output in COMPARED)):
        sources = {shift: scores.scores(name, output, shift, source=True) for shift in scores.shifts}
        source = next((values for values in sources.values() if values), None)
        if source is None:
            continue
        cells = []
        for shift in scores.shifts:
            target = scores.scores(name, output, shift)
            lost = {seed: sources[shift][seed] - value for seed, value in target.items()}
            cells.append(f"{format_values(target)} ({format_values(lost)})")
        rows.append([f"{name}, {NAMES[output]}", format_values(source), *cells])
    return markdown(header, rows)


def main_tables(scores: ScoreTable) -> str:
    """Returns the mean IoU of the main variants: a table per output, a column per shift."""
    parts = []
    for output in ("3d", "xm", "fused", "2d", "3d_lidar_only"):
        rows = [
            [
                _label(variant),
                *(format_values(scores.scores(variant.name, output, column)) for column in scores.columns),
                _seeds(scores, variant),
            ]
            for variant in _main_variants(scores)
        ]
        parts.append(f"**{NAMES[output]}**\n\n{markdown(['variant', *scores.columns, 'seeds'], rows)}")
    return "\n\n".join(parts)


def gain_tables(scores: ScoreTable) -> str:
    """Returns the points of the main variants above the baseline's 3D score, paired by seed: a table per output."""

    def gain(variant: str, output: str, column: str) -> str:
        gains = scores.gains(variant, output, column, over=BASELINE, over_output="3d")
        return format_values(gains, signed=True)

    parts = []
    for output in COMPARED:
        rows = [
            [_label(variant), *(gain(variant.name, output, column) for column in scores.columns)]
            for variant in _main_variants(scores)
            if variant.name != BASELINE
        ]
        title = f"**{NAMES[output]} above the 3D score of {BASELINE}**"
        parts.append(f"{title}\n\n{markdown(['variant', *scores.columns], rows)}")
    return "\n\n".join(parts)


def class_table(scores: ScoreTable) -> str:
    """Returns the 3D IoU by class of the main variants, mean over the shifts."""
    rows = [row for shift in scores.shifts for row in scores.rows(BASELINE, shift).values()]
    classes = list(rows[0].iou) if rows else []
    lines = [
        [_label(variant), *(format_values(scores.class_scores(variant.name, "3d", name, MEAN)) for name in classes)]
        for variant in _main_variants(scores)
    ]
    return markdown(["3D IoU, mean over the shifts", *classes], lines)


def sweep_tables(scores: ScoreTable) -> str:
    """Returns a table per sweep: the mean over the shifts, and the gain over the method in as many steps."""
    parts = []
    gained = [f"{NAMES[output]} to {SHORTER}" for output in COMPARED]
    for group in GROUPS:
        variants = [variant for variant in _tested(scores, group.variants) if variant.name != SHORTER]
        if group.main or not variants:
            continue
        header = [group.title, *(NAMES[output] for output in OUTPUTS), *gained, "seeds"]
        rows = [_sweep_row(scores, variant) for variant in (*_tested(scores, [VARIANTS[SHORTER]]), *variants)]
        parts.append(markdown(header, rows))
    return "\n\n".join(parts)


def _sweep_row(scores: ScoreTable, variant: Variant) -> list[str]:
    cells = [format_values(scores.scores(variant.name, output, MEAN)) for output in OUTPUTS]
    if variant.name == SHORTER:
        gains = [""] * len(COMPARED)
    else:
        gains = [
            format_values(scores.gains(variant.name, output, MEAN, over=SHORTER), signed=True) for output in COMPARED
        ]
    return [_label(variant), *cells, *gains, _seeds(scores, variant)]


def _seeds(scores: ScoreTable, variant: Variant) -> str:
    """How many seeds the variant's mean over the shifts has, and how many more were tested on some of the shifts."""
    complete = len(scores.scores(variant.name, "3d", MEAN))
    begun = max(len(scores.scores(variant.name, "3d", shift)) for shift in scores.shifts)
    return str(complete) if begun <= complete else f"{complete} + {begun - complete} in part"


def _main_variants(scores: ScoreTable) -> list[Variant]:
    return _tested(scores, [variant for group in GROUPS if group.main for variant in group.variants])


def _tested(scores: ScoreTable, variants: Iterable[Variant]) -> list[Variant]:
    return [variant for variant in variants if variant.name in scores.variants]


def _label(variant: Variant) -> str:
    return f"`{variant.name}`: {variant.label}"


def _plot_scores(scores: ScoreTable) -> bytes:
    """Bars with sample deviations for each shift and main variant, a row per output."""
    figure = new_figure(13.2, 3.7 * len(COMPARED))
    names = [variant.name for variant in _main_variants(scores)]
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
    swept = [variant for group in GROUPS if not group.main for variant in _tested(scores, group.variants)]
    names = [variant.name for variant in swept if variant.name != SHORTER]
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
