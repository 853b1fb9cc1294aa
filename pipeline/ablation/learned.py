"""Pictures of what the networks of the ablation learned: the agents they read, their spectrum, and errors."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ...errors import Xd3dError
from ...files import read_json, write_bytes, write_json
from ..runs import TrainedRun
from ..workspace import Workspace
from . import tables
from .benchmark import Benchmark
from .rows import Row
from .variants import BASELINE, REFERENCE

__all__ = ["FACTS", "Learned", "show_learned", "stored_learned"]

log = logging.getLogger(__name__)

#: Shown beside the method: agents with their whole spectrum, and the queries of the paper's form.
COMPARED = ("no-truncation", "paper")
FACTS = "learned.json"
IMAGES = "images"  #: folder of all pictures and plots
FRAMES = 4  #: looked at for each shift


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Names of the pictures that were drawn into ``images``, and the figures that stand beside them, as JSON values.

    ``agreement`` has for each shift the share of what points read that is of agents of their class, and that of chance;
    ``spectrum`` rows of a table.
    """

    runs: Mapping[str, str]
    shifts: list[str]
    agreement: Mapping[str, list[float]]
    spectrum: list[list[str]]
    pictures: list[str]

    @classmethod
    def parse(cls, values: Any) -> "Learned":
        """The same from JSON values.

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

    def blocks(self, images: str) -> dict[str, str]:
        """The parts of ``results.md``; ``images`` is the folder beside it."""
        shares = [
            [shift, f"{100 * own:.0f} %", f"{100 * alike:.0f} %"] for shift, (own, alike) in self.agreement.items()
        ]
        shown = {
            kind: "\n\n".join(f"![{name}]({images}/{name}.png)" for name in self.pictures if name.startswith(kind))
            for kind in ("attention", "spectrum", "errors")
        }
        looked = tables.markdown(["shift", "read of agents of the point's class", "if all were read alike"], shares)
        directions = tables.markdown(["matrix", "energy beyond k directions", "directions with 99 %"], self.spectrum)
        return {
            "attention": f"{looked}\n\n{shown['attention']}",
            "spectrum": f"{directions}\n\n{shown['spectrum']}",
            "errors": shown["errors"],
        }


def stored_learned(out: Path) -> Learned | None:
    """What was drawn into ``out`` before; None where there is nothing, or not all of it any more."""
    try:
        stored = Learned.parse(read_json(out / FACTS))
    except (FileNotFoundError, ValueError):
        return None
    return None if stored.missing(out / IMAGES) else stored


def show_learned(workspace: Workspace, benchmark: Benchmark, rows: list[Row], out: Path) -> None:
    """Draw the pictures into ``out/images`` from the first seed of the full method, unless they are there already.

    What was drawn before stays where the full method was not trained, or its run is gone.
    """
    runs = _first_runs(rows)
    shifts = [
        shift for shift in benchmark.shifts if any((row.shift, row.variant) == (shift, REFERENCE) for row in rows)
    ]
    stored = stored_learned(out)
    if not shifts or (stored is not None and (stored.runs, stored.shifts) == (runs, shifts)):
        return
    try:
        made = _draw(workspace, benchmark, shifts, runs, out / IMAGES)
    except Xd3dError as error:
        log.warning("There are no new pictures of what was learned: %s", error)
        return
    write_json(out / FACTS, vars(made))


def _first_runs(rows: list[Row]) -> dict[str, str]:
    """The run of the lowest seed of each variant that is shown."""
    shown = (BASELINE, REFERENCE, *COMPARED)
    found = sorted((row for row in rows if row.variant in shown), key=lambda row: -row.seed)
    return {row.variant: row.run for row in found}


def _draw(
    workspace: Workspace, benchmark: Benchmark, shifts: list[str], runs: Mapping[str, str], images: Path
) -> Learned:
    from ..report.insight import looks_over, mean_agreement
    from ..report.spectrum import spectrum_picture, spectrum_rows

    opened = {variant: TrainedRun.open(workspace, Path(name)) for variant, name in runs.items()}
    full = opened[REFERENCE]
    pictures: dict[str, bytes] = {}
    agreement: dict[str, list[float]] = {}
    for shift in shifts:
        looks = looks_over(full, full.domain(benchmark.shifts[shift], "test"), FRAMES)
        if not looks:
            continue
        way = looks[0].ways[0]
        pictures[f"attention-{shift}"] = looks[0].picture(way)
        found = mean_agreement(looks, way)
        if found:
            agreement[shift] = list(found)
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
    """Spectra of agents and queries on the source's test split: of the full method, and of what it is compared with."""
    from ...stages.predict.attention import CACHED
    from ..report.insight import looks_over
    from ..report.spectrum import spectra_of

    spectra: dict[str, Any] = {}
    for variant in (REFERENCE, *COMPARED):
        if variant in opened:
            looks = looks_over(opened[variant], opened[variant].domain(source, "test"), FRAMES)
            found = spectra_of([look.insight for look in looks])
            spectra |= {name if name == CACHED else f"{name}, {variant}": values for name, values in found.items()}
    return spectra


def _errors(opened: Mapping[str, TrainedRun], benchmark: Benchmark, shifts: list[str]) -> bytes:
    """Errors of the full method in 3D, and what they differ from the baseline's, shift by shift."""
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
    panels = {f"{REFERENCE}, wrong in 3D, %": [(s, t.shares) for s, t in zip(shifts, tallies[REFERENCE], strict=True)]}
    if BASELINE in tallies:
        pairs = zip(shifts, tallies[REFERENCE], tallies[BASELINE], strict=True)
        panels[f"{REFERENCE} less {BASELINE}"] = [(shift, ours.shares - theirs.shares) for shift, ours, theirs in pairs]
    return errors_picture(panels, tallies[REFERENCE][0].classes)
