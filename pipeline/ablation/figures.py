"""Figures beside the tables: score plots, and for trained runs their attention, spectrum and errors."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ...errors import Xd3dError
from ...files import read_json, write_bytes, write_json
from ..report.figures import new_figure, png_bytes
from ..runs import TrainedRun
from ..workspace import Workspace
from .plan import Benchmark
from .rows import MEAN, Row, ScoreTable, summarise
from .tables import COMPARED, NAMES, markdown
from .variants import BASELINE, GROUPS, REFERENCE, SHORTER

__all__ = ["FACTS", "IMAGES", "PLOTS", "Learned", "draw_learned", "stored_learned"]

log = logging.getLogger(__name__)

FACTS = "learned.json"
IMAGES = "images"  #: folder of all figures
SHOWN = ("no-truncation", "paper")  #: variants whose spectra are shown beside the method's
FRAMES = 4  #: analysed for each shift
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


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Record of the figures of trained ``runs``, which lie in ``images``, and of the numbers beside them.

    ``agreement`` has for each shift the share of attention on agents of the point's class, and that of uniform
    attention. ``spectrum`` holds the rows of a table.
    """

    runs: Mapping[str, str]
    shifts: list[str]
    agreement: Mapping[str, list[float]]
    spectrum: list[list[str]]
    pictures: list[str]

    @classmethod
    def parse(cls, values: Any) -> "Learned":
        """Returns the record from JSON values.

        Raises:
            ValueError: they are something else, or name a picture of another folder.
        """
        learned = TypeAdapter(cls).validate_python(values)
        if any(Path(name).name != name for name in learned.pictures):
            raise ValueError("a picture of another folder is named")
        return learned

    def missing(self, folder: Path) -> bool:
        """Whether ``folder`` lacks one of the pictures."""
        return not all((folder / f"{name}.png").is_file() for name in self.pictures)

    def blocks(self) -> dict[str, str]:
        """Returns the blocks of ``results.md`` by name."""
        shares = [
            [shift, f"{100 * own:.0f} %", f"{100 * uniform:.0f} %"] for shift, (own, uniform) in self.agreement.items()
        ]
        shown = {
            kind: "\n\n".join(f"![{name}]({IMAGES}/{name}.png)" for name in self.pictures if name.startswith(kind))
            for kind in ("attention", "spectrum", "errors")
        }
        agreement = markdown(["shift", "read of agents of the point's class", "if all were read alike"], shares)
        directions = markdown(["matrix", "energy beyond k directions", "directions with 99 %"], self.spectrum)
        return {
            "attention": f"{agreement}\n\n{shown['attention']}",
            "spectrum": f"{directions}\n\n{shown['spectrum']}",
            "errors": shown["errors"],
        }


def stored_learned(out: Path) -> Learned | None:
    """Returns the record of the figures in ``out``; None if it or one of its pictures is missing."""
    try:
        stored = Learned.parse(read_json(out / FACTS))
    except (FileNotFoundError, ValueError):
        return None
    return None if stored.missing(out / IMAGES) else stored


def draw_learned(workspace: Workspace, benchmark: Benchmark, rows: list[Row], out: Path) -> None:
    """Draws the figures of the first seed of each shown variant into ``out/images``, unless they exist already.

    Existing figures remain if the full method was not trained here, or its run was deleted.
    """
    shown = (BASELINE, REFERENCE, *SHOWN)
    runs = {row.variant: row.run for row in sorted(rows, key=lambda row: -row.seed) if row.variant in shown}
    tested = {row.shift for row in rows if row.variant == REFERENCE}
    shifts = [shift for shift in benchmark.shifts if shift in tested]
    stored = stored_learned(out)
    if not shifts or (stored is not None and (stored.runs, stored.shifts) == (runs, shifts)):
        return
    try:
        drawn = _draw(workspace, benchmark, shifts, runs, out / IMAGES)
    except Xd3dError as error:
        log.warning("The figures of attention, spectrum and errors are not updated: %s", error)
        return
    write_json(out / FACTS, vars(drawn))


def _draw(
    workspace: Workspace, benchmark: Benchmark, shifts: list[str], runs: Mapping[str, str], images: Path
) -> Learned:
    from ..report.analysis import attention_over, mean_agreement
    from ..report.spectrum import spectrum_picture, spectrum_rows

    opened = {variant: TrainedRun.open(workspace, Path(name)) for variant, name in runs.items()}
    full = opened[REFERENCE]
    pictures: dict[str, bytes] = {}
    agreement: dict[str, list[float]] = {}
    for shift in shifts:
        frames = attention_over(full, full.domain(benchmark.shifts[shift], "test"), FRAMES)
        if not frames:
            continue
        kind = frames[0].kinds[0]
        pictures[f"attention-{shift}"] = frames[0].picture(kind)
        shares = mean_agreement(frames, kind)
        if shares:
            agreement[shift] = list(shares)
    spectra = _spectra(opened, benchmark.source)
    rank = full.config.fusion.rank
    if spectra:
        pictures["spectrum"] = spectrum_picture(spectra, rank)
    pictures["errors"] = _errors(opened, benchmark, shifts)
    images.mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        write_bytes(images / f"{name}.png", png)
    return Learned(
        runs=runs, shifts=shifts, agreement=agreement, spectrum=spectrum_rows(spectra, rank), pictures=sorted(pictures)
    )


def _spectra(opened: Mapping[str, TrainedRun], source: str) -> dict[str, Any]:
    """Spectra of agents and queries of the shown variants on the source's test split."""
    from ...stages.predict.attention import CACHED
    from ..report.analysis import attention_over
    from ..report.spectrum import spectra_of

    spectra: dict[str, Any] = {}
    for variant in (REFERENCE, *SHOWN):
        if variant in opened:
            frames = attention_over(opened[variant], opened[variant].domain(source, "test"), FRAMES)
            found = spectra_of([frame.insight for frame in frames])
            spectra |= {name if name == CACHED else f"{name}, {variant}": values for name, values in found.items()}
    return spectra


def _errors(opened: Mapping[str, TrainedRun], benchmark: Benchmark, shifts: list[str]) -> bytes:
    """3D errors of the method on each shift, and their difference to the baseline's."""
    from ..report.errors import errors_picture, tally_errors

    tallies = {
        variant: [
            tally_errors(
                run.network, run.domain(benchmark.shifts[shift], "test", lidar_only=not run.network.needs_images), "3d"
            )
            for shift in shifts
        ]
        for variant, run in opened.items()
        if variant in (BASELINE, REFERENCE)
    }
    full = tallies[REFERENCE]
    panels = {f"{REFERENCE}, wrong in 3D, %": [(s, tally.shares) for s, tally in zip(shifts, full, strict=True)]}
    if BASELINE in tallies:
        pairs = zip(shifts, full, tallies[BASELINE], strict=True)
        panels[f"{REFERENCE} less {BASELINE}"] = [(shift, one.shares - other.shares) for shift, one, other in pairs]
    return errors_picture(panels, full[0].classes)
