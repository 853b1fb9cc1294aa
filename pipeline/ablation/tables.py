"""The generated parts of ``results.md``: Markdown tables from a board, each a block with a name."""

from collections.abc import Iterable, Sequence

from .board import MEAN, Board, Summary, said
from .claims import CLAIMS
from .rows import READINGS, Row
from .variants import BASELINE, GROUPS, REFERENCE, Variant

__all__ = [
    "claims_table",
    "class_table",
    "command_table",
    "gain_tables",
    "loss_table",
    "main_tables",
    "markdown",
    "sweep_tables",
]

SAID = {"2d": "2D", "3d": "3D", "3d_lidar_only": "3D, LiDAR only", "xm": "xM", "fused": "fused"}
COMPARED = ("3d", "xm", "fused")  #: readings that variants are compared in


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main_tables(board: Board) -> str:
    """Mean IoU of the main variants: a table a reading, a column a shift."""
    parts = []
    for reading in ("3d", "xm", "fused", "2d", "3d_lidar_only"):
        rows = [
            [
                _named(variant),
                *(said(board.scores(variant.name, reading, column)) for column in board.columns),
                _seeds(board, variant),
            ]
            for variant in _there(board, _tabled())
        ]
        parts.append(f"**{SAID[reading]}**\n\n{markdown(['variant', *board.columns, 'seeds'], rows)}")
    return "\n\n".join(parts)


def gain_tables(board: Board) -> str:
    """Points above the 3D score of the baseline, in 3D, in xM and fused, paired seed by seed."""
    parts = []
    for reading in COMPARED:
        rows = [
            [
                _named(variant),
                *(
                    said(board.gains(variant.name, reading, column, over=BASELINE, over_reading="3d"), signed=True)
                    for column in board.columns
                ),
            ]
            for variant in _there(board, _tabled())
            if variant.name != BASELINE
        ]
        title = f"**{SAID[reading]} above the 3D score of {BASELINE}**"
        parts.append(f"{title}\n\n{markdown(['variant', *board.columns], rows)}")
    return "\n\n".join(parts)


def loss_table(board: Board) -> str:
    """What the shift costs: the source's test score less the target's, of the baseline and of the full method."""
    header = ["network", "source test", *(f"{shift}: target (loss)" for shift in board.shifts)]
    rows = []
    for name, reading in ((BASELINE, "3d"), *((REFERENCE, reading) for reading in COMPARED)):
        source = next(
            (found for shift in board.shifts if (found := board.scores(name, reading, shift, source=True))), {}
        )
        if not source:
            continue
        cells = []
        for shift in board.shifts:
            target, at_source = board.scores(name, reading, shift), board.scores(name, reading, shift, source=True)
            lost = {seed: at_source[seed] - value for seed, value in target.items()}
            cells.append(f"{said(target)} ({said(lost)})")
        rows.append([f"{name}, {SAID[reading]}", said(source), *cells])
    return markdown(header, rows)


def claims_table(board: Board) -> str:
    """What was asked of the method, shift by shift, and whether it is so."""
    rows = []
    for claim in CLAIMS:
        found = [Summary.of(claim.gains(board, shift)) for shift in board.shifts]
        held = [claim.holds(gain.mean) for gain in found if gain]
        cells = [f"{gain.mean:+.1f} {'yes' if claim.holds(gain.mean) else 'no'}" if gain else "-" for gain in found]
        rows.append([claim.says, *cells, f"{sum(held)} of {len(held)}" if held else "-"])
    return markdown(["claim (points, mean over seeds)", *board.shifts, "holds on"], rows)


def class_table(board: Board) -> str:
    """3D IoU by class of the main variants, mean over the shifts."""
    classes = next((list(row.iou) for shift in board.shifts for row in board.of(BASELINE, shift).values()), [])
    rows = [
        [_named(variant), *(said(board.class_scores(variant.name, "3d", name, MEAN)) for name in classes)]
        for variant in _there(board, _tabled())
    ]
    return markdown(["3D IoU, mean over the shifts", *classes], rows)


def sweep_tables(board: Board) -> str:
    """One table a sweep: mean over the shifts in each reading, and its gain over the full method on the same seeds."""
    parts = []
    gained = [f"{SAID[reading]} to full" for reading in COMPARED]
    for group in GROUPS:
        variants = _there(board, group.variants)
        if group.tabled or not variants:
            continue
        header = [group.title, *(SAID[reading] for reading in READINGS), *gained, "seeds"]
        rows = [_sweep_row(board, variant) for variant in (*_there(board, _reference()), *variants)]
        parts.append(markdown(header, rows))
    return "\n\n".join(parts)


def command_table(rows: Sequence[Row]) -> str:
    """The command of every row, folded away."""
    lines = [
        [row.variant, row.shift, str(row.seed), *(_percent(row, reading) for reading in READINGS), f"`{row.command}`"]
        for row in sorted(rows, key=lambda row: (row.variant, row.shift, row.seed))
    ]
    table = markdown(["variant", "shift", "seed", *(SAID[reading] for reading in READINGS), "command"], lines)
    return f"<details><summary>{len(rows)} rows</summary>\n\n{table}\n\n</details>"


def _sweep_row(board: Board, variant: Variant) -> list[str]:
    scores = [said(board.scores(variant.name, reading, MEAN)) for reading in READINGS]
    if variant.name == REFERENCE:
        return [f"`{variant.name}`", *scores, *[""] * len(COMPARED), _seeds(board, variant)]
    gains = [said(board.gains(variant.name, reading, MEAN, over=REFERENCE), signed=True) for reading in COMPARED]
    return [_named(variant), *scores, *gains, _seeds(board, variant)]


def _seeds(board: Board, variant: Variant) -> str:
    """How many seeds stand behind the variant's mean over the shifts."""
    return str(len(board.scores(variant.name, "3d", MEAN)))


def _tabled() -> list[Variant]:
    return [variant for group in GROUPS if group.tabled for variant in group.variants]


def _reference() -> list[Variant]:
    return [variant for variant in _tabled() if variant.name == REFERENCE]


def _there(board: Board, variants: Iterable[Variant]) -> list[Variant]:
    return [variant for variant in variants if variant.name in board.variants]


def _named(variant: Variant) -> str:
    return f"`{variant.name}`: {variant.says}"


def _percent(row: Row, reading: str) -> str:
    value = row.miou[reading]
    return "-" if value is None else f"{100 * value:.1f}"
