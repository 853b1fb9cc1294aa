"""What stage one takes on data sets and machines that are not here: bytes, hours and money.

``python tests/benchmarks/planning.py --model FOLDER`` reads the configs of a model (a folder in diffusers' layout, no
weights needed). Bytes are exact: the layout of the cache that would be written. TFLOP an image are counted on a pass
without data. Hours are those of the slowest of three that work side by side: the device, by a rate for each ``--gpu
NAME=TFLOP/s:PRICE``, an estimate; decoding, by the milliseconds that a picture of the data set's size and format takes
a core of this machine, and ``--cores``; and writing, by ``--disk``. ``--measure N`` also times N images of each size on
this machine, with random weights in float32. Prints the tables of ``docs/planning.md`` in Markdown, and one JSON object
as the last line.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from made_index import bare_index
from streets import PHOTO_QUALITY, photo
from torch.utils.flop_counter import FlopCounterMode
from xd3d.cache.layout import PROFILES
from xd3d.stages.extract.extractor import FeatureExtractor
from xd3d.stages.extract.images import load_image
from xd3d.stages.extract.job import planned_layout, stored_bytes
from xd3d.stages.extract.models import ModelFolder, resolve_model
from xd3d.stages.extract.settings import Decoding, ExtractSettings
from xd3d.stages.extract.taps import find_taps, run_to_taps, tap_specs, vae_factor

DATASETS = {  # name -> images, cameras a frame, width and height and format of its pictures
    "nuScenes, front": (34_149, 1, (1600, 900), "JPEG"),
    "nuScenes, six cameras": (204_894, 6, (1600, 900), "JPEG"),
    "A2D2": (27_695, 1, (1920, 1208), "PNG"),
    "SemanticKITTI": (43_552, 1, (1242, 375), "PNG"),
}
DECODED = 5  #: pictures, of which the median counts
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
    parser.add_argument("--cores", type=int, default=16, help="that decode beside a GPU; default %(default)s")
    given = parser.parse_args()
    model = resolve_model(given.model, weights="random")
    gpus = dict(_gpu(text) for text in given.gpu or GPUS)
    sizes = [_size(model, size, given.measure) for size in SIZES]
    rows = [row for size in sizes for row in _rows(model, size, gpus, given.disk, given.cores)]
    print(_size_table(sizes), _decode_table(rows), _cost_table(rows, gpus), sep="\n\n", end="\n\n")
    assumed = {"gpus": gpus, "disk_gb_per_second": given.disk, "cores": given.cores}
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
    layout = planned_layout(bare_index(1, 1), settings, tap_specs(model, settings))
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
            run_to_taps(find_taps(unet, settings.map_taps), lambda: unet(latent, torch.tensor(0), text))
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
    model: ModelFolder, size: dict[str, Any], gpus: dict[str, dict[str, float]], disk: float, cores: int
) -> Iterator[dict[str, Any]]:
    """What each data set takes at one image size; ``disk`` in GB/s."""
    settings = _settings(model, size["image_size"])
    specs = tap_specs(model, settings)
    for name, (images, cameras, source, kind) in DATASETS.items():
        layout = planned_layout(bare_index(images, cameras), settings, specs)
        stored = {p: stored_bytes(replace(layout, profile=p), layout.shards()) for p in PROFILES}
        decode = {way: decode_milliseconds(source, kind, settings.image_size, way) for way in get_args(Decoding)}
        host = {
            "decode": images * decode["full"] / 1e3 / cores / 3600,
            "write": stored[PROFILES[0]] / (disk * 1e9) / 3600,
        }
        device = {gpu: images * size["tflop"] / facts["tflops"] / 3600 for gpu, facts in gpus.items()}
        hours = {gpu: max((value, "device"), *((h, part) for part, h in host.items())) for gpu, value in device.items()}
        yield {
            "dataset": name,
            "images": images,
            "source": [*source, kind],
            "image_size": size["image_size"],
            "shards": layout.shard_count,
            "bytes": stored,
            "decode_milliseconds": decode,
            "host_hours": host,
            "device_hours": device,
            "hours": {gpu: value for gpu, (value, _) in hours.items()},
            "slowest": {gpu: part for gpu, (_, part) in hours.items()},
            "cost": {gpu: value * gpus[gpu]["price_per_hour"] for gpu, (value, _) in hours.items()},
        }


@lru_cache
def decode_milliseconds(source: tuple[int, int], kind: str, image_size: tuple[int, int], decoding: Decoding) -> float:
    """Processor time of a core that decodes and resizes a picture of ``source`` (width, height) for stage one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        photo(0, *source).save(path, kind, **({"quality": PHOTO_QUALITY} if kind == "JPEG" else {}))
        took = []
        for _ in range(1 + DECODED):
            start = time.process_time()
            load_image(path, image_size=image_size, decoding=decoding)
            took.append(1e3 * (time.process_time() - start))
    return float(np.median(took[1:]))  # the first warms up


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


def _decode_table(rows: list[dict[str, Any]]) -> str:
    heads = ["pictures (w x h)", "decoded to", *(f"ms a core, `decoding={way}`" for way in get_args(Decoding))]
    found = {}
    for row in rows:
        (width, height, kind), (rows_, columns) = row["source"], row["image_size"]
        times = (f"{row['decode_milliseconds'][way]:.1f}" for way in get_args(Decoding))
        found[width, height, rows_] = [f"{kind} {width} x {height}", f"{columns} x {rows_}", *times]
    return _table(heads, list(found.values()))


def _cost_table(rows: list[dict[str, Any]], gpus: dict[str, dict[str, float]]) -> str:
    heads = ["data set", "images", "image (w x h)", *(f"GB, {p}" for p in PROFILES), "shards", "decoded"]
    heads += [f"{PROFILES[0]} written", *(f"{gpu} hours, cost" for gpu in gpus)]
    lines = []
    for row in rows:
        height, width = row["image_size"]
        cells = [row["dataset"], f"{row['images']:,}", f"{width} x {height}"]
        cells += [f"{row['bytes'][p] / 1e9:,.0f}" for p in PROFILES] + [f"{row['shards']:,}"]
        cells += [f"{row['host_hours'][part]:.2f} h" for part in ("decode", "write")]
        for gpu in gpus:
            why = "" if row["slowest"][gpu] == "device" else f" ({row['slowest'][gpu]})"
            cells.append(f"{row['hours'][gpu]:.2f} h{why}, {row['cost'][gpu]:.2f}")
        lines.append(cells)
    return _table(heads, lines)


def _table(heads: list[str], lines: list[list[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


if __name__ == "__main__":
    main()
