"""What an earlier ablation published, on this machine or another: its rows count as done, its pictures stay."""

import shutil
from pathlib import Path

from ...errors import DataError
from ...files import read_json, write_json
from .learned import FACTS, Learned
from .results import IMAGES
from .rows import Row, RowFile

__all__ = ["take_over"]


def take_over(docs: Path, out: Path, rows: RowFile) -> None:
    """Add to ``rows`` those of ``docs/results.json`` that it lacks, and to ``out`` what the runs behind them learned.

    Whether a row's settings and data are still in force is left to whoever reads the rows.

    Raises:
        DataError: ``results.json`` holds something else.
    """
    path = docs / "results.json"
    if not path.exists():
        return
    try:
        results = read_json(path)
        published = [Row(**row) for row in (*results["rows"], *results["development"])]
        learned = Learned(**results["learned"]) if results["learned"] else None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} does not hold results of this version ({error}); give another --docs, or move it away"
        ) from error
    if learned and any(Path(name).name != name for name in learned.pictures):
        raise DataError(f"{path} names a picture of another folder; give another --docs, or move it away")
    known = {row.key for row in rows.rows}
    for row in published:
        if row.key not in known:
            rows.append(row)
    if learned and not (out / FACTS).exists():
        (out / IMAGES).mkdir(exist_ok=True)
        for name in learned.pictures:
            shutil.copyfile(docs / IMAGES / f"{name}.png", out / IMAGES / f"{name}.png")
        write_json(out / FACTS, vars(learned))
