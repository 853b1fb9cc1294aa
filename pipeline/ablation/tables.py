"""The generated parts of ``results.md``: Markdown tables from a board, each a block with a name."""

from collections.abc import Collection, Iterable, Sequence

from .board import MEAN, Board, Summary, said
from .claims import CLAIMS
from .rows import READINGS, Row
from .variants import BASELINE, GROUPS, REFERENCE, SHORTER, VARIANTS, Variant

__all__ = [
    "claims_table",
    "class_table",
    "command_table",
    "gain_tables",
    "headline_table",
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


def headline_table(board: Board) -> str:
    """What the method is worth, in one table: LiDAR alone, with cached features, and what the target's labels give."""
    lines = (
        ("LiDAR alone", BASELINE, "3d"),
        ("with cached features, no camera at test", REFERENCE, "3d_lidar_only"),
        ("with cached features, 3D", REFERENCE, "3d"),
        ("with cached features, fused", REFERENCE, "fused"),
        ("and the target's unlabelled frames, fused", "uda", "fused"),
        ("trained on the target's labels, fused", "oracle", "fused"),
    )
    rows = [
        [says, *(said(board.scores(variant, reading, column)) for column in board.columns)]
        for says, variant, reading in lines
        if variant in board.variants
    ]
    return markdown(["mIoU, %", *board.columns], rows)


def claims_table(board: Board, fresh: Collection[str]) -> str:
    """What was asked of the method, shift by shift, and whether it is so; ``fresh`` ones are counted by themselves."""
    rows = []
    for claim in CLAIMS:
        found = {shift: Summary.of(claim.gains(board, shift)) for shift in board.shifts}
        held = {shift: claim.holds(gain.mean) for shift, gain in found.items() if gain}
        cells = [f"{gain.mean:+.1f} {'yes' if held[shift] else 'no'}" if gain else "-" for shift, gain in found.items()]
        counts = [
            f"{sum(chosen)} of {len(chosen)}" if chosen else "-"
            for chosen in ([yes for shift, yes in held.items() if (shift in fresh) == new] for new in (False, True))
        ]
        rows.append([claim.says, *cells, *counts])
    return markdown(["claim (points, mean over seeds)", *board.shifts, "holds on old", "holds on new"], rows)


def class_table(board: Board) -> str:
    """3D IoU by class of the main variants, mean over the shifts."""
    classes = next((list(row.iou) for shift in board.shifts for row in board.of(BASELINE, shift).values()), [])
    rows = [
        [_named(variant), *(said(board.class_scores(variant.name, "3d", name, MEAN)) for name in classes)]
        for variant in _there(board, _tabled())
    ]
    return markdown(["3D IoU, mean over the shifts", *classes], rows)


def sweep_tables(board: Board) -> str:
    """One table a sweep: mean over the shifts in each reading, and its gain over the method in as many steps."""
    parts = []
    gained = [f"{SAID[reading]} to {SHORTER}" for reading in COMPARED]
    for group in GROUPS:
        variants = [variant for variant in _there(board, group.variants) if variant.name != SHORTER]
        if group.tabled or not variants:
            continue
        header = [group.title, *(SAID[reading] for reading in READINGS), *gained, "seeds"]
        rows = [_sweep_row(board, variant) for variant in (*_there(board, [VARIANTS[SHORTER]]), *variants)]
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
    if variant.name == SHORTER:
        return [_named(variant), *scores, *[""] * len(COMPARED), _seeds(board, variant)]
    gains = [said(board.gains(variant.name, reading, MEAN, over=SHORTER), signed=True) for reading in COMPARED]
    return [_named(variant), *scores, *gains, _seeds(board, variant)]


def _seeds(board: Board, variant: Variant) -> str:
    """How many seeds stand behind the variant's mean over the shifts."""
    return str(len(board.scores(variant.name, "3d", MEAN)))


def _tabled() -> list[Variant]:
    return [variant for group in GROUPS if group.tabled for variant in group.variants]


def _there(board: Board, variants: Iterable[Variant]) -> list[Variant]:
    return [variant for variant in variants if variant.name in board.variants]


def _named(variant: Variant) -> str:
    return f"`{variant.name}`: {variant.says}"


def _percent(row: Row, reading: str) -> str:
    value = row.miou[reading]
    return "-" if value is None else f"{100 * value:.1f}"
