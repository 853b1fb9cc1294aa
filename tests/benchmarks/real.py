"""Frozen networks on real photographs: agents against other regions, and a linear probe on LiDAR labels.

``python tests/benchmarks/real.py DATA`` reads ``semantickitti_scenes`` and ``pandaset_sensors`` in the folder DATA. For
every network at hand it measures processor seconds and bytes an image, the mIoU that LiDAR points reach if each takes
the most frequent class of its region (agents; SLIC, k-means and equal cells beside them), and that of a linear probe on
the features at the points, fitted on some scenes and scored on others. The last line is one JSON object. ``--write``
puts table and pictures into ``docs``. There are 10 and 8 frames: differences of a few points say nothing.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from efficientnet import export
from regions import colour_regions, equal_cells, slic_regions, strongest
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from xd3d.cache.schema import TapSpec
from xd3d.pipeline.report.figures import agent_colours, feature_colours, image_row
from xd3d.stages.datasets.frames import load_frame
from xd3d.stages.datasets.index import FrameIndex
from xd3d.stages.datasets.labels import IGNORE, index_merge
from xd3d.stages.datasets.prepare import prepare_dataset
from xd3d.stages.extract.agents import AgentMaker
from xd3d.stages.extract.backbones import open_backbone
from xd3d.stages.extract.images import PictureSource
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.settings import RGB, AgentSettings, ExtractSettings

DOCS = Path(__file__).parents[2] / "docs"
MARKS = "<!-- real.py -->", "<!-- /real.py -->"
MERGE, CLASSES, AGENTS = "a2d2-semantickitti-10", 10, 100
SIZES = {"semantickitti": (224, 742), "folder": (378, 672)}  #: height and width, multiples of 14
POINTS = 3000  #: of a frame, that a probe is fitted to
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One frame: its scene, its picture [H, W, 3], and the labelled points: (u, v) [P, 2] and classes [P]."""

    scene: str
    picture: np.ndarray
    uv: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a network makes of the shots of one data set: float32 maps by tap, and the agents' regions [H, W]."""

    specs: Mapping[str, TapSpec]
    maps: list[dict[str, Tensor]]
    regions: list[np.ndarray]
    colours: np.ndarray
    seconds: float

    @property
    def bytes(self) -> int:
        """Bytes of an image's maps in float16."""
        return sum(2 * spec.channels * spec.height * spec.width for spec in self.specs.values())


def shots(dataset: str, root: Path, work: Path) -> list[Shot]:
    """Every frame of a data set with the points that its picture shows."""
    prepare_dataset(dataset, root, work / dataset)
    index = FrameIndex.load(work / dataset)
    merge, pictures = index_merge(MERGE, index), PictureSource(index=index, image_size=SIZES[dataset])
    found = []
    for row in range(len(index.frames.key)):
        frame = load_frame(index, row, merge)
        known = frame.labels[frame.projection_point] != IGNORE
        picture, _ = pictures.read([int(frame.image_rows[0])])
        found.append(
            Shot(
                scene=str(index.frames.scene[row]),
                picture=picture[0].transpose(1, 2, 0),
                uv=frame.projection_uv[known],
                labels=frame.labels[frame.projection_point][known],
            )
        )
    return found


def networks(data: Path, work: Path) -> dict[str, Callable[[tuple[int, int]], ExtractSettings]]:
    """The networks at hand: name -> settings for images of a size."""
    dino = work / "dinov2-base"
    dino.mkdir()
    config = {"model_type": "dinov2", "image_size": 518, "patch_size": 14, "hidden_size": 768}
    (dino / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 12, "num_attention_heads": 12}))
    normal = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (dino / "preprocessor_config.json").write_text(json.dumps(normal))

    def lite(size: tuple[int, int], taps: tuple[str, ...] = ("stride8", "stride16", "stride32")) -> ExtractSettings:
        padded = (size[0] + -size[0] % 32, size[1] + -size[1] % 32)
        folder = work / f"lite2-{padded[1]}"
        model = folder if folder.is_dir() else export(folder, padded)
        return ExtractSettings(model=str(model), taps=taps, image_size=size)

    sd = str(data / "stable_diffusion_configs/sd21-base")
    unet = ("up0", "up1", "up2", "up3")
    return {
        "colours alone": lambda size: lite(size, ("stride8", RGB)),
        "tiny-street": lambda size: ExtractSettings(taps=unet, image_size=size),
        "EfficientNet-Lite 2 (ImageNet)": lite,
        "DINOv2 base, random weights": lambda size: ExtractSettings(
            model=str(dino), weights="random", taps=("block11",), image_size=size
        ),
        "SD 2.1 base, random weights": lambda size: ExtractSettings(
            model=sd, weights="random", taps=("up1", "up2"), image_size=size
        ),
    }


@torch.inference_mode()
def look(settings: ExtractSettings, found: Sequence[Shot]) -> Seen:
    """Runs a network on every shot."""
    backbone = open_backbone(settings_model(settings), settings, CPU)
    alone = RGB in settings.taps  # the other tap gives the agents their grid, and no feature
    agents = AgentSettings(count=AGENTS, assign="rgb" if alone else "features+rgb")
    maker = AgentMaker(settings=agents, specs=backbone.specs, image_size=settings.image_size, device=CPU)
    maps, regions, seconds = [], [], []
    for shot in found:
        picture = torch.from_numpy(shot.picture.copy()).permute(2, 0, 1)[None]
        start = time.process_time()
        values = backbone(picture, ["probe"])
        seconds.append(time.process_time() - start)
        made = maker({tap: each for tap, each in values.items() if tap != RGB}, picture)
        regions.append(strongest(made.assignment[0], maker.grid, settings.image_size))
        maps.append({tap: each[0].float() for tap, each in values.items() if not alone or tap == RGB})
        colours = agent_colours(made.assignment[0].numpy())
    specs = {tap: spec for tap, spec in backbone.specs.items() if not alone or tap == RGB}
    return Seen(specs=specs, maps=maps, regions=regions, colours=colours, seconds=float(np.median(seconds)))


def at_points(seen: Seen, number: int, shot: Shot) -> np.ndarray:
    """Features of the cells that the points of a shot lie in [P, C], each channel normalised over the image."""
    columns = []
    for tap, spec in seen.specs.items():
        values = seen.maps[number][tap]
        values = (values - values.mean((1, 2), keepdim=True)) / values.std((1, 2), keepdim=True).clamp_min(1e-4)
        row, column = ((shot.uv[:, axis] * spec.extent[1 - axis]).astype(int) for axis in (1, 0))
        columns.append(values[:, row, column].T.numpy())
    return np.concatenate(columns, 1)


def region_miou(found: Sequence[Shot], regions: Sequence[np.ndarray]) -> float:
    """mIoU in per cent of points that take the most frequent class of their region."""
    guesses = []
    for shot, cut in zip(found, regions, strict=True):
        height, width = cut.shape
        place = cut[(shot.uv[:, 1] * height).astype(int), (shot.uv[:, 0] * width).astype(int)]
        counts = np.zeros((int(cut.max()) + 1, CLASSES), int)
        np.add.at(counts, (place, shot.labels), 1)
        guesses.append(counts.argmax(1)[place])
    return miou(np.concatenate(guesses), np.concatenate([shot.labels for shot in found]))


def miou(guesses: np.ndarray, labels: np.ndarray) -> float:
    """Mean IoU in per cent over the classes that occur among the labels."""
    confusion = np.bincount(labels * CLASSES + guesses, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    there = confusion.sum(1) > 0
    return float(100 * (confusion.diagonal()[there] / union[there]).mean())


def probe(train: Sequence[tuple[Shot, np.ndarray]], tests: Sequence[tuple[Shot, np.ndarray]]) -> float:
    """Fits a linear classifier to some points of ``train`` and scores it on all points of ``tests``."""
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(len(shot.labels))[:POINTS] for shot, _ in train]
    inputs = np.concatenate([vectors[rows] for (_, vectors), rows in zip(train, chosen, strict=True)])
    labels = np.concatenate([shot.labels[rows] for (shot, _), rows in zip(train, chosen, strict=True)])
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-5
    with warnings.catch_warnings(action="ignore"):  # a hundred steps are enough
        fitted = LogisticRegression(C=0.01, max_iter=100).fit((inputs - mean) / deviation, labels)
    guesses = np.concatenate([fitted.predict((vectors - mean) / deviation) for _, vectors in tests])
    return miou(guesses, np.concatenate([shot.labels for shot, _ in tests]))


def probes(kitti: Sequence[tuple[Shot, np.ndarray]], panda: Sequence[tuple[Shot, np.ndarray]]) -> dict[str, float]:
    """The probes of a network: across KITTI's scenes, from KITTI to PandaSet, and from one LiDAR to the other."""
    scenes = sorted({shot.scene for shot, _ in kitti})
    across = [
        probe([pair for pair in kitti if pair[0].scene != scene], [pair for pair in kitti if pair[0].scene == scene])
        for scene in scenes
    ]
    spinning, solid = ([pair for pair in panda if pair[0].scene.endswith(kind)] for kind in ("pandar64", "pandargt"))
    return {
        "other scenes": float(np.mean(across)),
        "KITTI to PandaSet": probe(kitti, panda),
        "spinning to solid-state": probe(spinning[:2], solid[2:]),
    }


def positions(shot: Shot) -> np.ndarray:
    """The control of the probes: nothing but the pixel position."""
    u, v = shot.uv.T
    return np.stack([u, v, u * u, v * v, u * v], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", help="names of networks, separated by semicolons")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        roots = {
            "semantickitti": given.data / "semantickitti_scenes/dataset",
            "folder": given.data / "pandaset_sensors",
        }
        sets = {name: shots(name, root, work) for name, root in roots.items()}
        results, pictures = measure(sets, networks(given.data, work), given.only)
    text = table(results)
    print(text)
    if given.write:
        page = (DOCS / "backbones.md").read_text()
        start, end = (page.index(mark) for mark in MARKS)
        (DOCS / "backbones.md").write_text(f"{page[: start + len(MARKS[0])]}\n{text}\n{page[end:]}")
        for name, picture in pictures.items():
            (DOCS / f"images/backbones-{name.split()[0].lower()}.png").write_bytes(picture)
    print(json.dumps(results))


def measure(
    sets: Mapping[str, Sequence[Shot]],
    made: Mapping[str, Callable[[tuple[int, int]], ExtractSettings]],
    only: str | None,
) -> tuple[dict[str, dict[str, float]], dict[str, bytes]]:
    """Results by row of the table, and the pictures of the last photograph by network."""
    kitti, panda = sets["semantickitti"], sets["folder"]
    results: dict[str, dict[str, float]] = {}
    others: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "equal cells": cache(lambda shape: equal_cells(AGENTS, shape)),
        "k-means": lambda image: colour_regions(image, AGENTS, 1.0),
        "SLIC": lambda image: slic_regions(image, AGENTS, 20.0),
    }
    for name, cut in others.items():
        given = (lambda shot: shot.picture.shape[:2]) if name == "equal cells" else (lambda shot: shot.picture)
        results[name] = {key: region_miou(found, [cut(given(shot)) for shot in found]) for key, found in sets.items()}
    results["pixel position alone"] = probes(
        [(shot, positions(shot)) for shot in kitti], [(shot, positions(shot)) for shot in panda]
    )
    shown: dict[str, bytes] = {}
    for name, settings in made.items():
        if only and name not in only.split(";"):
            continue
        seen = {key: look(settings(SIZES[key]), found) for key, found in sets.items()}
        pairs = {
            key: [(shot, at_points(seen[key], number, shot)) for number, shot in enumerate(found)]
            for key, found in sets.items()
        }
        scores = {key: region_miou(found, seen[key].regions) for key, found in sets.items()}
        cost = {"seconds": seen["semantickitti"].seconds, "kB": seen["semantickitti"].bytes / 1000}
        results[name] = {**cost, **scores, **probes(pairs["semantickitti"], pairs["folder"])}
        finest = max(seen["folder"].specs.values(), key=lambda spec: spec.height)
        components = feature_colours(seen["folder"].maps[-1][finest.name].numpy())
        shown[name] = image_row({f"{name}: features": components, "agents": seen["folder"].colours})
        print(name, json.dumps(results[name]), flush=True)
    return results, shown


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """The table of the page."""
    columns = {  # key -> title and format
        "seconds": ("s/image", ".2f"),
        "kB": ("kB/image", ".0f"),
        "semantickitti": ("regions, KITTI", ".1f"),
        "folder": ("regions, PandaSet", ".1f"),
        "other scenes": ("probe, other scenes", ".1f"),
        "KITTI to PandaSet": ("probe, KITTI to PandaSet", ".1f"),
        "spinning to solid-state": ("probe, spinning to solid-state", ".1f"),
    }
    lines = ["", f"| | {' | '.join(title for title, _ in columns.values())} |", f"|---{'|---:' * len(columns)}|"]
    for name, row in results.items():
        cells = [format(row[key], form) if key in row else "" for key, (_, form) in columns.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
