"""Are agents worth their name? Their queries against the same features pooled over equal cells, k-means and SLIC.

``python tests/benchmarks/agents.py`` renders labelled streets of the synthetic cities, cuts each picture into as many
regions as it has agents, and measures (a) the mIoU of a map that gives every pixel the most frequent class of its
region, (b) a linear probe on the regions' query vectors, trained on Boston by day and scored under shift. The last line
is one JSON object. ``--choose`` scores the candidates for the settings instead, on the development shifts, which are
never reported. ``--write`` puts table and pictures into ``docs``. What is rendered or computed is kept in ``--work``.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from regions import (
    Regions,
    achievable,
    agent_regions,
    class_pixels,
    colour_regions,
    equal_cells,
    on_grid,
    pooled,
    probe_scores,
    slic_regions,
)
from skimage.segmentation import mark_boundaries
from streets import DEVELOPMENT, DOMAINS, Streets, specs_of, tap_maps
from xd3d.files import write_atomic
from xd3d.stages.extract.agents import grid_tap
from xd3d.stages.extract.settings import AgentSettings

DOCS = Path(__file__).parents[2] / "docs"
SOURCE, SHIFTS = "boston day", tuple(DOMAINS)[1:]
COMPACTNESS, POSITION = 20.0, 1.0  # of SLIC and of k-means; chosen on the development shifts too
KINDS = {
    "agents, trained": ("trained", "agents"),
    "agents, day-only": ("day-only", "agents"),
    "agents, random": ("random", "agents"),
    "SLIC, trained": ("trained", "SLIC"),
    "k-means, trained": ("trained", "k-means"),
    "equal cells, trained": ("trained", "equal cells"),
}
#: What was tried on the development shifts, beside the defaults: changes of ``AgentSettings``.
CANDIDATES: tuple[tuple[str, dict[str, object]], ...] = (
    ("agents", {}),
    ("agents", {"temperature": 0.005}),
    ("agents", {"temperature": 0.01}),
    ("agents", {"temperature": 0.03}),
    ("agents", {"seeds": "grid"}),
    ("agents", {"assign": "features"}),
    ("agents", {"assign": "rgb"}),
    ("agents", {"rgb_weight": 1.0}),
    ("agents", {"rgb_weight": 4.0}),
    ("agents", {"position_weight": 0.5}),
    ("agents", {"tap_weights": {"up0": 0.0}}),
    ("agents", {"grid": "up2"}),
    ("agents", {"rounds": 5}),
    ("agents", {"rounds": 20}),
    ("agents", {"count": 64}),
    ("agents", {"count": 144}),
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured: pictures to train and to test on for each seed, and regions a picture."""

    train: int = 40
    test: int = 12
    count: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Pictures, features and regions, each made once and kept in ``work``."""

    work: Path
    size: Size

    def domains(self, shifts: Sequence[str], seed: int) -> Iterator[tuple[str, range]]:
        """The domains of one seed with the numbers of their streets, the training streets first."""
        yield "train", range(seed * 1000, seed * 1000 + self.size.train)
        for domain in shifts:
            yield domain, range(10_000 + seed * 1000, 10_000 + seed * 1000 + self.size.test)

    def cut(
        self, model: str, method: str, domain: str, numbers: range, settings: AgentSettings
    ) -> tuple[Streets, np.ndarray, Regions]:
        """Streets of a domain, their regions by a method [n, 225, 400], and those regions with features of a model."""
        domain = SOURCE if domain == "train" else domain
        streets = Streets.rendered(domain, numbers, self.work)
        specs = specs_of(model)
        maps = tap_maps(model, streets.images, self._file(f"{model} {domain}", numbers))
        if method == "agents":
            found, queries = agent_regions(settings, specs, maps, streets.images)
        else:
            found = self._plain(method, domain, numbers, streets.images)
            queries = pooled(found, max(self.size.count, int(found.max()) + 1), specs, maps)
        return streets, found, Regions.of(found, queries, streets.labels, specs, maps)

    def score(
        self, model: str, method: str, shifts: Sequence[str], settings: AgentSettings
    ) -> dict[str, dict[str, list[float]]]:
        """All measures of a kind of regions, one value a seed: measure -> domain -> mIoU in percent."""
        grid = specs_of(model)[grid_tap(settings, specs_of(model))]
        table: dict[str, dict[str, list[float]]] = {
            measure: {domain: [] for domain in shifts} for measure in ("achievable", "on grid", "pixels", "regions")
        }
        for seed in self.size.seeds:
            parts: dict[str, Regions] = {}
            for domain, numbers in self.domains(shifts, seed):
                streets, found, parts[domain] = self.cut(model, method, domain, numbers, settings)
                if domain != "train":
                    coarse = class_pixels(on_grid(found, grid), streets.labels, int(found.max()) + 1)
                    table["on grid"][domain].append(achievable(coarse))
                    table["achievable"][domain].append(achievable(parts[domain].pixels))
            train = parts.pop("train")
            for domain, (pixels, regions) in probe_scores(train, parts, seed).items():
                table["pixels"][domain].append(pixels)
                table["regions"][domain].append(regions)
        return table

    def _plain(self, method: str, domain: str, numbers: range, images: np.ndarray) -> np.ndarray:
        count = self.size.count
        methods: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
            "equal cells": lambda _: equal_cells(count),
            "SLIC": lambda image: slic_regions(image, count, COMPACTNESS),
            "k-means": lambda image: colour_regions(image, count, POSITION),
        }
        file = self._file(f"{method} {count} {domain}", numbers)
        if not file.is_file():
            found = np.stack([methods[method](image) for image in images]).astype(np.int16)
            write_atomic(file, lambda stream: np.savez_compressed(stream, regions=found))
        with np.load(file) as stored:
            return stored["regions"].astype(np.int64)

    def _file(self, name: str, numbers: range) -> Path:
        return self.work / f"{name} {numbers[0]}-{numbers[-1]}.npz".replace(" ", "-")


def shift_means(scores: Mapping[str, Sequence[float]], shifts: Sequence[str]) -> np.ndarray:
    """Mean over the shifts for each seed."""
    return np.mean([scores[domain] for domain in shifts], axis=0)


def spread(values: np.ndarray) -> list[float]:
    """Mean and deviation over seeds."""
    return [round(float(np.mean(values)), 2), round(float(np.std(values)), 2)]


def summary(tables: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> dict[str, object]:
    """Differences to the agents of trained features, by measure: mean over shifts and seeds, deviation over seeds."""
    result: dict[str, object] = {}
    for measure in ("achievable", "on grid", "pixels", "regions"):
        means = {kind: shift_means(table[measure], SHIFTS) for kind, table in tables.items()}
        agents = means["agents, trained"]
        names = {"cells": "equal cells, trained", "kmeans": "k-means, trained", "slic": "SLIC, trained",
                 "random": "agents, random", "day_only": "agents, day-only"}  # fmt: skip
        result[measure.replace(" ", "_")] = {
            **{f"agents_minus_{name}": spread(agents - means[kind]) for name, kind in names.items()},
            "miou": {kind: spread(values) for kind, values in means.items()},
        }
    result["domains"] = {
        kind: {measure: {domain: spread(np.array(v)) for domain, v in row.items()} for measure, row in table.items()}
        for kind, table in tables.items()
    }
    return result


def markdown(result: Mapping[str, object]) -> str:
    """The table of the page: a row for each kind of regions."""
    rows = [
        "| regions, features | achievable | on the grid | probe, pixels | probe, regions |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        cells = [result[measure]["miou"][kind] for measure in ("achievable", "on_grid", "pixels", "regions")]
        rows.append(f"| {kind} | " + " | ".join(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in cells) + " |")
    rows += ["", f"| probe, pixels | {' | '.join(DOMAINS)} |", "|---" * (len(DOMAINS) + 1) + "|"]
    for kind in KINDS:
        cells = result["domains"][kind]["pixels"].values()
        rows.append(f"| {kind} | " + " | ".join(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in cells) + " |")
    return "\n".join(rows)


def write_docs(bench: Bench, result: Mapping[str, object]) -> None:
    """Put the table between the marks of ``docs/agents.md``, and pictures beside it."""
    page = DOCS / "agents.md"
    before, rest = page.read_text().split("<!-- table -->\n")
    after = rest.split("<!-- end of table -->\n")[1]
    page.write_text(f"{before}<!-- table -->\n{markdown(result)}\n<!-- end of table -->\n{after}")
    draw(bench, DOCS / "images" / "agents.jpg")


def draw(bench: Bench, path: Path) -> None:
    """Streets of three domains: the picture, its classes, and the borders of agents, SLIC, k-means and equal cells."""
    palette = np.array([[60, 60, 200], [90, 90, 90], [220, 170, 200], [150, 200, 110], [190, 150, 90], [30, 120, 40]])
    rows = []
    for domain in ("boston day", "boston night", "boston fog"):
        numbers = next(numbers for name, numbers in bench.domains(tuple(DOMAINS), 0) if name == domain)
        cuts = {
            method: bench.cut("trained", method, domain, numbers, AgentSettings(count=bench.size.count))[:2]
            for method in ("agents", "SLIC", "k-means", "equal cells")
        }
        streets = cuts["agents"][0]
        picture, labels = streets.images[0], streets.labels[0]
        classes = np.where((labels < 0)[..., None], 255, palette[labels.clip(0)]).astype(np.uint8)
        drawn = [mark_boundaries(picture, found[0], color=(1, 1, 0)) * 255 for _, found in cuts.values()]
        rows.append(np.hstack([picture, classes, *drawn]).astype(np.uint8))
    sheet = Image.fromarray(np.vstack(rows))
    sheet.resize((sheet.width * 3 // 4, sheet.height * 3 // 4)).save(path, quality=80)


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "xd3d-agents")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", type=int, default=Size.train, help="pictures a seed to train on")
    parser.add_argument("--test", type=int, default=Size.test, help="pictures a seed and a domain to test on")
    parser.add_argument("--count", type=int, default=Size.count, help="regions a picture")
    parser.add_argument("--seeds", type=int, default=len(Size.seeds))
    parser.add_argument("--choose", action="store_true", help="score candidates on the development shifts")
    parser.add_argument("--write", action="store_true", help="put table and pictures into docs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    size = Size(train=options.train, test=options.test, count=options.count, seeds=tuple(range(options.seeds)))
    bench = Bench(work=options.work, size=size)
    result = choose(bench) if options.choose else measure(bench)
    if options.write and not options.choose:
        write_docs(bench, result)
    print(json.dumps({**result, "seconds": round(time.monotonic() - began)}))


def measure(bench: Bench) -> dict[str, object]:
    """Score every kind of regions on the source's held-out streets and under every shift."""
    settings = AgentSettings(count=bench.size.count)
    tables = {}
    for kind, (model, method) in KINDS.items():
        tables[kind] = bench.score(model, method, tuple(DOMAINS), settings)
        print(kind, {m: spread(shift_means(rows, SHIFTS)) for m, rows in tables[kind].items()}, file=sys.stderr)
    return summary(tables)


def choose(bench: Bench) -> dict[str, object]:
    """Score every candidate on the development shifts."""
    found: dict[str, object] = {}
    for method, changes in [*CANDIDATES, ("SLIC", {}), ("k-means", {}), ("equal cells", {})]:
        settings = AgentSettings.model_validate({"count": bench.size.count, **changes})
        table = bench.score("trained", method, DEVELOPMENT, settings)
        name = ", ".join([method, *(f"{key}: {value}" for key, value in changes.items())])
        found[name] = {m: spread(shift_means(rows, DEVELOPMENT)) for m, rows in table.items()}
        print(name, found[name], file=sys.stderr)
    return {"development": found}


if __name__ == "__main__":
    main()
