"""The published results: ``results.json`` with every row, and ``results.md``, whose generated blocks have markers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...files import read_json, write_bytes, write_json
from . import tables
from .plan import Benchmark, Request, variant_digest
from .rows import Row, RowFile, ScoreTable, parse_rows
from .variants import VARIANTS

__all__ = ["Results", "publish", "replace_blocks", "write_results"]

PAGE = """# Results of the ablation

How well the variants of the method do on the shifts of the generalisation benchmark; mIoU in per cent on each target's
test split, mean and sample deviation over the seeds. Made by `xd3d ablate`; `results.json` beside it has every row.
"""

HEADINGS = {
    "headline": "What the method is worth",
    "facts": "How it was run",
    "claims": "Claims",
    "loss": "What each shift costs",
    "main": "Scores",
    "gains": "Gains",
    "classes": "Classes",
    "sweeps": "Sweeps",
}
IMAGES = "images"  #: folder of the plots


@dataclass(frozen=True, kw_only=True)
class Results:
    """The rows of the current settings and data: those of reported shifts, and those of development shifts."""

    benchmark: Benchmark
    request: Request
    rows: Sequence[Row]
    development: Sequence[Row]
    failed: Mapping[str, str]

    @classmethod
    def select(
        cls, benchmark: Benchmark, request: Request, data: str, rows: Sequence[Row], failed: Mapping[str, str]
    ) -> "Results":
        """Chooses the rows of the current settings and data by their digests."""
        settings = request.settings(benchmark)
        variants = {row.variant for row in rows} & set(VARIANTS)
        digests = {name: variant_digest(benchmark, VARIANTS[name], settings, data) for name in variants}
        current = [row for row in rows if digests.get(row.variant) == row.digest]
        order = list(VARIANTS)
        current.sort(key=lambda row: (order.index(row.variant), row.shift, row.seed))
        return cls(
            benchmark=benchmark,
            request=request,
            rows=[row for row in current if row.shift in benchmark.shifts],
            development=[row for row in current if row.shift in benchmark.development],
            failed=failed,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``results.json``; ``rows`` are of the reported shifts only."""
        return {
            "short": self.request.short,
            "source": self.benchmark.source,
            "rows": [asdict(row) for row in self.rows],
            "development": [asdict(row) for row in self.development],
            "failed": dict(self.failed),
            "learned": None,  # earlier versions read facts of figures here
        }

    def blocks(self) -> dict[str, str]:
        """Returns the generated blocks of ``results.md`` by name."""
        scores = ScoreTable(self.rows, list(self.benchmark.shifts))
        plots = {name: f"\n\n![{name}]({IMAGES}/ablation-{name}.png)" for name in tables.PLOTS}
        sweeps = tables.sweep_tables(scores)
        return {
            "facts": self._facts(),
            "headline": tables.headline_table(scores),
            "claims": tables.claims_table(scores, self.benchmark.fresh),
            "loss": tables.loss_table(scores),
            "main": tables.main_tables(scores) + plots["scores"],
            "gains": tables.gain_tables(scores),
            "classes": tables.class_table(scores),
            "sweeps": sweeps + plots["sweeps"] if sweeps else "No sweep has been trained yet.",
        }

    def plots(self) -> dict[str, bytes]:
        """Returns the plots of the scores as PNG files, by name."""
        scores = ScoreTable(self.rows, list(self.benchmark.shifts))
        empty = () if tables.sweep_tables(scores) else ("sweeps",)
        return {f"ablation-{name}": draw(scores) for name, draw in tables.PLOTS.items() if name not in empty}

    def _facts(self) -> str:
        seconds = {row.run: row.seconds for row in (*self.rows, *self.development)}
        facts = [
            ["form", "short" if self.request.short else "full"],
            ["source", self.benchmark.source],
            ["seeds", ", ".join(map(str, sorted({row.seed for row in self.rows})))],
            ["steps", ", ".join(map(str, sorted({row.steps for row in self.rows})))],
            ["process hours of training and tests", f"{sum(seconds.values()) / 3600:.1f}"],
            ["code", ", ".join(sorted({row.code for row in self.rows}))],
            ["failed runs", ", ".join(self.failed) or "none"],
        ]
        return tables.markdown(["", ""], facts)


def write_results(results: Results, out: Path, docs: Path | None) -> None:
    """Writes tables, figures and rows to ``out``, and to ``docs`` if given; text outside the blocks is preserved.

    Raises:
        DataError: the markers of a page are damaged.
    """
    blocks, figures = results.blocks(), results.plots()
    for folder in (out, docs) if docs else (out,):
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        for name, png in figures.items():
            write_bytes(folder / IMAGES / f"{name}.png", png)
        page = folder / "results.md"
        text = page.read_text(encoding="utf-8") if page.exists() else PAGE
        try:
            write_bytes(page, replace_blocks(text, blocks).encode())
        except ValueError as error:
            raise DataError(f"{page} cannot be updated: {error}") from error
        write_json(folder / "results.json", results.to_json())


def replace_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """Replaces each block between its markers in ``text``; blocks without markers are appended.

    Raises:
        ValueError: a marker of ``text`` is unpaired, so the end of its block is unknown.
    """
    marks = [(kind, name) for kind, name in re.findall(r"<!-- (generated|end): (\S+) -->", text)]
    names = [name for kind, name in marks if kind == "generated"]
    if marks != [(kind, name) for name in names for kind in ("generated", "end")] or len(set(names)) < len(names):
        raise ValueError(
            "its markers '<!-- generated: NAME -->' and '<!-- end: NAME -->' do not come in pairs, each once; restore"
            " them, or delete the pair"
        )
    for name, content in blocks.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        marked = f"{begin}\n{content}\n{end}"
        before, found, rest = text.partition(begin)
        if found:
            text = f"{before}{marked}{rest.partition(end)[2]}"
        else:
            text = f"{text.rstrip()}\n\n## {HEADINGS.get(name, name)}\n\n{marked}\n"
    return text


def publish(
    benchmark: Benchmark,
    request: Request,
    data: str,
    rows: RowFile,
    failed: Mapping[str, str],
    *,
    out: Path,
    docs: Path | None,
) -> Results:
    """Writes the results of all rows to ``out``, and to ``docs`` if given, whose rows are added to ``rows`` first.

    ``data`` identifies the data.

    Raises:
        DataError: ``docs`` holds something else, or rows of other settings, which would be lost.
    """
    published = _import_published(rows, docs) if docs else []
    results = Results.select(benchmark, request, data, rows.rows, failed)
    kept = {row.key for row in (*results.rows, *results.development)}
    if lost := [row for row in published if row.key not in kept]:
        raise DataError(
            f"{docs} holds {len(lost)} rows of other settings or data (the first is '{lost[0].command}'), which"
            " would be lost; give another --docs, or the settings that they were made with"
        )
    write_results(results, out, docs)
    return results


def _import_published(rows: RowFile, docs: Path) -> list[Row]:
    """Adds the rows of ``docs/results.json`` to ``rows``; returns them."""
    path = docs / "results.json"
    if not path.exists():
        return []
    try:
        results = read_json(path)
        published = parse_rows([*results["rows"], *results["development"]])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} does not hold results of this version ({error}); give another --docs, or move it away"
        ) from error
    known = {row.key for row in rows.rows}
    for row in published:
        if row.key not in known:
            rows.append(row)
    return published
