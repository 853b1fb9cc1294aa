"""What an earlier ablation published, on this machine or another: its rows count as done, its pictures stay."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import DataError
from ...files import read_json, write_json
from .benchmark import Benchmark
from .learned import FACTS, IMAGES, Learned, stored_learned
from .plan import Request
from .results import Results, write_results
from .rows import Row, RowFile, parse_rows

__all__ = ["Publisher"]


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """Writes the results of ``rows`` to ``out``, and to ``docs`` where that is given.

    ``data`` identifies the data set.
    """

    benchmark: Benchmark
    request: Request
    data: str
    rows: RowFile
    out: Path
    docs: Path | None

    def publish(self, failed: dict[str, str]) -> Results:
        """Write the results of all rows there are, among them those that ``docs`` has gained meanwhile.

        Raises:
            DataError: ``docs`` holds something else, or rows of other settings, which would be lost.
        """
        published = _take_over(self.docs, self.out, self.rows) if self.docs else []
        found = Results.select(self.benchmark, self.request, self.data, self.rows.rows, failed)
        found = replace(found, learned=stored_learned(self.out))
        kept = {row.key for row in (*found.rows, *found.development)}
        if lost := [row for row in published if row.key not in kept]:
            raise DataError(
                f"{self.docs} holds {len(lost)} rows of other settings or data ('{lost[0].command}' the first), which"
                " would be lost; give another --docs, or the settings that they were made with"
            )
        write_results(found, self.out, self.docs)
        return found


def _take_over(docs: Path, out: Path, rows: RowFile) -> list[Row]:
    """Add to ``rows`` those of ``docs/results.json`` that it lacks, and to ``out`` what the runs behind them learned.

    Returns the rows of ``docs``; whether their settings and data are still in force is another question.
    """
    path = docs / "results.json"
    if not path.exists():
        return []
    try:
        results = read_json(path)
        published = parse_rows([*results["rows"], *results["development"]])
        learned = Learned.parse(results["learned"]) if results["learned"] else None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} does not hold results of this version ({error}); give another --docs, or move it away"
        ) from error
    known = {row.key for row in rows.rows}
    for row in published:
        if row.key not in known:
            rows.append(row)
    if learned and not (out / FACTS).exists() and not learned.missing(docs / IMAGES):
        (out / IMAGES).mkdir(exist_ok=True)
        for name in learned.pictures:
            shutil.copyfile(docs / IMAGES / f"{name}.png", out / IMAGES / f"{name}.png")
        write_json(out / FACTS, vars(learned))
    return published
