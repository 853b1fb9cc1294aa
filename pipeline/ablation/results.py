"""The results as files: ``results.json``, and ``results.md``, whose generated parts stand between markers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...files import write_bytes, write_json
from . import tables
from .benchmark import Benchmark
from .board import Board
from .learned import IMAGES, Learned
from .plan import Request, variant_digest
from .plots import PLOTS
from .rows import Row
from .variants import VARIANTS

__all__ = ["Results", "replace_blocks", "write_results"]

PAGE = """# Results of the ablation

How well the variants of the method do on the shifts of the generalisation benchmark; mIoU in per cent on each target's
test split, mean and sample deviation over the seeds. Made by `xd3d ablate`.
"""

HEADINGS = {
    "headline": "What the method is worth",
    "facts": "How it was run",
    "claims": "What was asked",
    "loss": "What each shift costs",
    "main": "Scores",
    "gains": "Gains",
    "classes": "Classes",
    "sweeps": "Sweeps",
    "attention": "Which agents the points read",
    "spectrum": "What decoupling leaves",
    "errors": "Errors by distance and class",
    "commands": "Every row and its command",
}


@dataclass(frozen=True, kw_only=True)
class Results:
    """The rows that the settings and data in force made: those of reported shifts, and those of development ones."""

    benchmark: Benchmark
    request: Request
    rows: Sequence[Row]
    development: Sequence[Row]
    failed: Mapping[str, str]
    learned: Learned | None = None

    @classmethod
    def select(
        cls, benchmark: Benchmark, request: Request, data: str, rows: Sequence[Row], failed: Mapping[str, str]
    ) -> "Results":
        """Choose from ``rows`` those whose settings and data are still in force."""
        settings = request.settings(benchmark)
        found = {row.variant for row in rows} & set(VARIANTS)
        digests = {name: variant_digest(benchmark, VARIANTS[name], settings, data) for name in found}
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

    @property
    def board(self) -> Board:
        """The reported rows, to compare."""
        return Board(self.rows, list(self.benchmark.shifts))

    def to_json(self) -> dict[str, Any]:
        """What ``results.json`` holds; ``rows`` are of the reported shifts only."""
        return {
            "short": self.request.short,
            "source": self.benchmark.source,
            "rows": [asdict(row) for row in self.rows],
            "development": [asdict(row) for row in self.development],
            "failed": dict(self.failed),
            "learned": vars(self.learned) if self.learned else None,
        }

    def blocks(self) -> dict[str, str]:
        """The generated parts of ``results.md``, by name."""
        board = self.board
        return {
            "facts": self._facts(),
            "headline": tables.headline_table(board),
            "claims": tables.claims_table(board, self.benchmark.fresh),
            "loss": tables.loss_table(board),
            "main": tables.main_tables(board) + _pictured("scores"),
            "gains": tables.gain_tables(board),
            "classes": tables.class_table(board),
            "sweeps": tables.sweep_tables(board) + _pictured("sweeps"),
            **(self.learned.blocks(IMAGES) if self.learned else {}),
            "commands": tables.command_table(self.rows),
        }

    def _facts(self) -> str:
        codes = sorted({row.code for row in self.rows})
        steps = sorted({row.steps for row in self.rows})
        hours = sum({row.run: row.seconds for row in (*self.rows, *self.development)}.values()) / 3600
        facts = [
            ["form", "short" if self.request.short else "full"],
            ["source", self.benchmark.source],
            ["seeds", ", ".join(map(str, self.board.seeds))],
            ["steps", ", ".join(map(str, steps))],
            ["process hours of training and tests", f"{hours:.1f}"],
            ["code", ", ".join(codes)],
            ["failed runs", ", ".join(self.failed) or "none"],
        ]
        return tables.markdown(["", ""], facts)


def write_results(results: Results, out: Path, docs: Path | None) -> None:
    """Write tables, plots and rows to ``out``, and to ``docs`` where it is given; hand-written text there stays."""
    board, blocks = results.board, results.blocks()
    plots = {f"ablation-{name}": draw(board) for name, draw in PLOTS.items()}
    if results.learned:
        plots |= {name: (out / IMAGES / f"{name}.png").read_bytes() for name in results.learned.pictures}
    for folder in (out, docs) if docs else (out,):
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        for name, png in plots.items():
            write_bytes(folder / IMAGES / f"{name}.png", png)
        page = folder / "results.md"
        text = page.read_text(encoding="utf-8") if page.exists() else PAGE
        try:
            write_bytes(page, replace_blocks(text, blocks).encode())
        except ValueError as error:
            raise DataError(f"{page} cannot be brought up to date: {error}") from error
        write_json(folder / "results.json", results.to_json())


def replace_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """Put each block between its markers in ``text``, and those that have no markers there at the end.

    Raises:
        ValueError: a marker of ``text`` has lost its partner, so what lies between is nobody's.
    """
    marks = [(kind, name) for kind, name in re.findall(r"<!-- (generated|end): (\S+) -->", text)]
    names = [name for kind, name in marks if kind == "generated"]
    if marks != [(kind, name) for name in names for kind in ("generated", "end")] or len(set(names)) < len(names):
        raise ValueError(
            "its markers '<!-- generated: NAME -->' and '<!-- end: NAME -->' do not come in pairs, each once; put them"
            " back, or delete the pair"
        )
    for name, content in blocks.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        marked = f"{begin}\n{content}\n{end}"
        before, begun, rest = text.partition(begin)
        if begun:
            text = f"{before}{marked}{rest.partition(end)[2]}"
        else:
            text = f"{text.rstrip()}\n\n## {HEADINGS.get(name, name)}\n\n{marked}\n"
    return text


def _pictured(name: str) -> str:
    return f"\n\n![{name}]({IMAGES}/ablation-{name}.png)"
