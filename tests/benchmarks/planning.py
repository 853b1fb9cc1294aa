"""What stage one takes on data sets and machines that are not here: bytes, hours and money.

``python tests/benchmarks/planning.py --model FOLDER`` reads the configs of a model (a folder in diffusers' layout, no
weights needed). Bytes are exact: the layout of the cache that would be written. TFLOP an image are counted on a pass
without data. Hours follow from them and a rate for each ``--gpu NAME=TFLOP/s:PRICE``, an estimate; ``--measure N`` also
times N images of each size on this machine, with random weights in float32. Prints the tables of ``docs/planning.md``
in Markdown, and one JSON object as the last line.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from xd3d.cache.layout import PROFILES
from xd3d.stages.datasets.index import FrameIndex, FrameTable, ImageTable
from xd3d.stages.extract.extractor import FeatureExtractor
from xd3d.stages.extract.models import ModelFolder, resolve_model
from xd3d.stages.extract.plan import planned_layout, stored_bytes
from xd3d.stages.extract.settings import ExtractSettings
from xd3d.stages.extract.specs import tap_specs, vae_factor
from xd3d.stages.extract.taps import find_taps, run_to_taps

DATASETS = {  # name -> images, cameras a frame
    "nuScenes, front": (34_149, 1),
    "nuScenes, six cameras": (204_894, 6),
    "A2D2": (27_695, 1),
    "SemanticKITTI": (43_552, 1),
}
SIZES = ((225, 400), (302, 480), (448, 800))  # height, width
SHARE_OF_PEAK = 0.3  # of the dense bfloat16 peak: what is assumed where nothing was measured
GPUS = (f"A100={312 * SHARE_OF_PEAK:g}:1.50", f"H100={989 * SHARE_OF_PEAK:g}:2.50")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder in diffusers' layout; configs are enough")
    parser.add_argument("--gpu", action="append", help=f"NAME=TFLOP/s:PRICE an hour; default {' and '.join(GPUS)}")
    parser.add_argument("--measure", type=int, default=0, metavar="N", help="time N images of each size here")
    parser.add_argument(
        "--disk", type=float, default=1.0, help="GB/s at which the cache is written; default %(default)s"
    )
    given = parser.parse_args()
    model = resolve_model(given.model, weights="random")
    gpus = dict(_gpu(text) for text in given.gpu or GPUS)
    sizes = [_size(model, size, given.measure) for size in SIZES]
    rows = [row for size in sizes for row in _rows(model, size, gpus, given.disk)]
    print(_size_table(sizes), _cost_table(rows, gpus), sep="\n\n", end="\n\n")
    assumed = {"gpus": gpus, "disk_gb_per_second": given.disk}
    print(json.dumps({"model": Path(given.model).name, "assumed": assumed, "sizes": sizes, "rows": rows}))


def _gpu(text: str) -> tuple[str, dict[str, float]]:
    name, _, numbers = text.partition("=")
    rate, _, price = numbers.partition(":")
    return name, {"tflops": float(rate), "price_per_hour": float(price)}


def _settings(model: ModelFolder, size: tuple[int, int]) -> ExtractSettings:
    return ExtractSettings(
        model=str(model.path), weights="random", image_size=size, device="cpu", dtype="float32", batch_size=1
    )


def _size(model: ModelFolder, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Facts of one image size that hold for any data set."""
    settings = _settings(model, size)
    layout = planned_layout(_index(1, 1), settings, tap_specs(model, settings))
    stored = {profile: replace(layout, profile=profile).bytes_per_image for profile in PROFILES}
    facts: dict[str, Any] = {"image_size": size, "bytes_per_image": stored, **image_tflop(model, settings)}
    if repeats:
        facts["measured"] = _measured(settings, facts["tflop"], repeats)
    return facts


def image_tflop(model: ModelFolder, settings: ExtractSettings) -> dict[str, float]:
    """TFLOP of one image (a multiplication and an addition are two) without the agents, which take a few per cent."""
    factor = vae_factor(model.config("vae"))
    padded = [-(-side // factor) * factor for side in settings.image_size]
    with torch.device("meta"), torch.inference_mode():
        vae = AutoencoderKL.from_config(model.config("vae")).eval()
        unet = UNet2DConditionModel.from_config(model.config("unet")).eval()
        text = torch.empty(1, 77, unet.config.cross_attention_dim)
        with FlopCounterMode(display=False) as encoding:
            latent = vae.encode(torch.empty(1, 3, *padded)).latent_dist.mean
        with FlopCounterMode(display=False) as reading:
            run_to_taps(find_taps(unet, settings.diffusion_taps), lambda: unet(latent, torch.tensor(0), text))
    parts = {"vae": encoding.get_total_flops() / 1e12, "unet": reading.get_total_flops() / 1e12}
    return {"tflop": sum(parts.values()), **{f"tflop_{name}": value for name, value in parts.items()}}


def _measured(settings: ExtractSettings, tflop: float, repeats: int) -> dict[str, Any]:
    """Seconds of an image here, the fastest and the median of ``repeats`` after one to warm up."""
    extractor = FeatureExtractor(settings=settings)
    pictures = np.random.default_rng(0).integers(0, 256, (1, 3, *settings.image_size), dtype=np.uint8)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        extractor(pictures, ["image"])
        seconds.append(time.perf_counter() - start)
    fastest, median = min(seconds[1:]), float(np.median(seconds[1:]))
    return {
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "images": repeats,
        "fastest": fastest,
        "median": median,
        "tflops": tflop / fastest,
        "load": os.getloadavg()[0],
    }


def _rows(
    model: ModelFolder, size: dict[str, Any], gpus: dict[str, dict[str, float]], disk: float
) -> Iterator[dict[str, Any]]:
    """What each data set takes at one image size; ``disk`` in GB/s."""
    settings = _settings(model, size["image_size"])
    specs = tap_specs(model, settings)
    for name, (images, cameras) in DATASETS.items():
        layout = planned_layout(_index(images, cameras), settings, specs)
        hours = {gpu: images * size["tflop"] / facts["tflops"] / 3600 for gpu, facts in gpus.items()}
        stored = {p: stored_bytes(replace(layout, profile=p), layout.shards()) for p in PROFILES}
        yield {
            "dataset": name,
            "images": images,
            "image_size": size["image_size"],
            "shards": layout.shard_count,
            "bytes": stored,
            "write_hours": {p: count / (disk * 1e9) / 3600 for p, count in stored.items()},
            "gpu_hours": hours,
            "cost": {gpu: hours[gpu] * facts["price_per_hour"] for gpu, facts in gpus.items()},
        }


@lru_cache
def _index(images: int, cameras: int) -> FrameIndex:
    """An index of as many images and frames as a data set has, and nothing else of it."""
    frames = images // cameras
    words = np.array([f"{row:032x}" for row in range(images)])
    return FrameIndex(
        dataset="planned",
        version="",
        root=Path("/"),
        cameras=tuple(f"camera {camera}" for camera in range(cameras)),
        frames=FrameTable(
            **dict.fromkeys(
                ("key", "scene", "location", "description", "split", "sweep", "labels"), words[::cameras][:frames]
            )
        ),
        images=ImageTable(
            frame=np.arange(images) // cameras,
            **dict.fromkeys(("key", "camera", "path"), words),
            size=np.zeros((images, 2), np.int64),
            intrinsics=np.zeros((images, 3, 3)),
            camera_from_lidar=np.zeros((images, 4, 4)),
        ),
    )


def _size_table(sizes: list[dict[str, Any]]) -> str:
    measured = [f"float32, {size['measured']['threads']} threads here" for size in sizes[:1] if "measured" in size]
    heads = ["image (w x h)", *(f"MB, {p}" for p in PROFILES), "TFLOP", "of it VAE", *measured]
    lines = []
    for size in sizes:
        height, width = size["image_size"]
        cells = [f"{width} x {height}", *(f"{size['bytes_per_image'][p] / 1e6:.2f}" for p in PROFILES)]
        cells += [f"{size['tflop']:.2f}", f"{size['tflop_vae'] / size['tflop']:.0%}"]
        if "measured" in size:
            cells.append(f"{size['measured']['fastest']:.1f} s, {1e3 * size['measured']['tflops']:.0f} GFLOP/s")
        lines.append(cells)
    return _table(heads, lines)


def _cost_table(rows: list[dict[str, Any]], gpus: dict[str, dict[str, float]]) -> str:
    heads = ["data set", "images", "image (w x h)", *(f"GB, {p}" for p in PROFILES), "shards", f"{PROFILES[0]} written"]
    heads += [f"{gpu} hours, cost" for gpu in gpus]
    lines = []
    for row in rows:
        height, width = row["image_size"]
        cells = [row["dataset"], f"{row['images']:,}", f"{width} x {height}"]
        cells += [f"{row['bytes'][p] / 1e9:,.0f}" for p in PROFILES] + [f"{row['shards']:,}"]
        cells.append(f"{row['write_hours'][PROFILES[0]]:.2f} h")
        cells += [f"{row['gpu_hours'][gpu]:.2f} h, {row['cost'][gpu]:.2f}" for gpu in gpus]
        lines.append(cells)
    return _table(heads, lines)


def _table(heads: list[str], lines: list[list[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


if __name__ == "__main__":
    main()
