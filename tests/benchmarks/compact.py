"""What the profile ``compact`` costs and saves: bytes, cosines, rates, and with ``--train`` the final mIoU.

``python tests/benchmarks/compact.py`` codes the features of the tiny pipeline on pictures of the synthetic cities, and
random features of full size with heavy tails, some with whole channels near 10^4 ("far"), some with single values of
10^4 ("spikes"), by four schemes: that of the cache (e4m3 with scale and offset a channel), e4m3 without the offset,
int8 with scale and offset a channel, and int8 with one scale a tensor. A cosine compares the channels of one cell, or
of one agent, before and after; "worst" is the lowest percentile, "normalised" the cosine of what a network reads by
default. Rates are of one thread, memory warm, by its processor time, so that other work on the machine counts little:
batches of eight full-size images read, and made tensors that are normalised.

``--train`` extracts the demo's city in both profiles and trains each with three seeds, as the demo does. Progress goes
to stderr; the last line of stdout is one JSON object.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streets import DOMAINS, city_picture, normalised
from xd3d.cache.codec import E4M3, decode
from xd3d.cache.layout import PROFILES, CacheLayout
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import ImageFeatures, TapSpec, features_of
from xd3d.cache.writer import CacheWriter
from xd3d.pipeline import jobs
from xd3d.pipeline.runs import TrainedRun
from xd3d.pipeline.sharing import Sharing
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.extract.extractor import FeatureExtractor
from xd3d.stages.extract.settings import ExtractSettings
from xd3d.stages.train import images as device

sys.path.insert(0, str(Path(__file__).parents[1]))
from numpy_encoder import as_stored, encode, write_shard

FLAT = device.FLAT
AGENTS, BATCH, READ_IMAGES = 100, 8, 48
SD_CHANNELS = {"up0": 1280, "up1": 1280, "up2": 640, "up3": 320}
SEEDS = (1, 2, 3)

Channels = np.ndarray  # float32 [C, n]: the n cells of a map, or the n agents, of one image


def by_cache(values: Channels) -> Channels:
    codes = encode(values[None].astype(np.float16), 1)
    return decode(*codes, 1)[0]


def by_e4m3(values: Channels) -> Channels:
    scale = np.exp2(np.ceil(np.log2(np.maximum(np.abs(values).max(1, keepdims=True) / 448, 2.0**-24))))
    codes = torch.from_numpy((values / scale).astype(np.float32)).to(torch.float8_e4m3fn).view(torch.uint8)
    return E4M3[codes.numpy()] * scale


def by_int8(values: Channels, axes: tuple[int, ...] = (1,)) -> Channels:
    offset = values.mean(axes, keepdims=True).astype(np.float16).astype(np.float32)
    scale = np.abs(values - offset).max(axes, keepdims=True) / 127
    return np.rint((values - offset) / np.maximum(scale, 1e-12)) * scale + offset


SCHEMES: dict[str, Callable[[Channels], Channels]] = {
    "cache": by_cache,
    "e4m3 without offset": by_e4m3,
    "int8": by_int8,
    "int8, one scale a tensor": lambda values: by_int8(values, (0, 1)),
}


def log(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def city_features(pictures: int) -> dict[str, list[Channels]]:
    """Maps and agents of the tiny pipeline, as a cache of the profile ``exact`` has them."""
    extractor = FeatureExtractor(settings=ExtractSettings(device="cpu"))
    found: dict[str, list[Channels]] = {}
    for domain in list(DOMAINS)[:3]:
        for number in range(pictures):
            picture = city_picture(domain, number).image.transpose(2, 0, 1)[None]
            features = extractor(np.ascontiguousarray(picture), [f"{domain} {number}"]).features()
            for tap, values in features.agents.items():
                maps = features.maps[tap][0].reshape(values.shape[2], -1)
                found.setdefault(tap, []).append(maps.astype(np.float32))
                found.setdefault(f"{tap} agents", []).append(values[0].T.astype(np.float32))
    return found


def stored(values: np.ndarray) -> Channels:
    return as_stored(values, np.dtype(np.float16)).astype(np.float32)


def heavy_features(pictures: int) -> dict[str, list[Channels]]:
    """Student's t with 3 degrees, channels of very different size; means far from zero, or one cell in 1000 at 10^4."""
    rng = np.random.default_rng(0)
    found: dict[str, list[Channels]] = {}
    for tap, (channels, height, width) in sd_shapes(225, 400).items():
        for _ in range(pictures):
            shape = (channels, height * width)
            values = rng.standard_t(3, shape) * np.exp(rng.normal(0, 1, (channels, 1)))
            far = values + 3 * rng.standard_t(2, (channels, 1))
            far[rng.integers(0, channels, 2)] += 1e4
            found.setdefault(f"{tap} far", []).append(stored(far))
            spikes = np.where(rng.random(shape) < 1e-3, 1e4, values)
            found.setdefault(f"{tap} spikes", []).append(stored(spikes))
    return found


def cosines(features: dict[str, list[Channels]]) -> dict[str, dict[str, dict[str, float]]]:
    """Tap -> scheme -> mean and lowest percentile of the cosine, raw and normalised."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for tap, images in features.items():
        table[tap] = {}
        for scheme, code in SCHEMES.items():
            pairs = [(image, code(image).astype(np.float32)) for image in images]
            raw = np.concatenate([cosine(*pair) for pair in pairs])
            normal = np.concatenate([cosine(*(normalise(part) for part in pair)) for pair in pairs])
            table[tap][scheme] = {
                "mean": float(raw.mean()),
                "worst": float(np.percentile(raw, 1)),
                "normalised mean": float(normal.mean()),
                "normalised worst": float(np.percentile(normal, 1)),
            }
    return table


def normalise(values: Channels) -> Channels:
    """Each channel less its mean, over its deviation."""
    deviation = values.std(1, keepdims=True, dtype=np.float64)
    return np.where(deviation > FLAT, (values - values.mean(1, keepdims=True, dtype=np.float64)) / deviation, 0)


def cosine(first: Channels, second: Channels) -> np.ndarray:
    a, b = first.astype(np.float64), second.astype(np.float64)
    return (a * b).sum(0) / np.maximum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-30)


def sd_shapes(height: int, width: int) -> dict[str, tuple[int, int, int]]:
    """Shapes of the taps of Stable Diffusion: strides 64, 32, 16 and 8, halves rounded up."""
    sides = [(-(-height // 8), -(-width // 8))]
    for _ in range(3):
        sides.append((-(-sides[-1][0] // 2), -(-sides[-1][1] // 2)))
    return {tap: (channels, *side) for (tap, channels), side in zip(SD_CHANNELS.items(), sides[::-1], strict=True)}


def sd_layout(height: int, width: int) -> CacheLayout:
    """An exact cache of one image."""
    shapes = {**sd_shapes(height, width), "rgb": (3, -(-height // 4), -(-width // 4))}
    taps = [
        TapSpec(name=tap, channels=c, height=h, width=w, extent=(float(h), float(w)), dtype="float16")
        for tap, (c, h, w) in shapes.items()
    ]
    taps[-1] = replace(taps[-1], dtype="uint8")
    facts: dict[str, Any] = {"image_keys": ("",), "images_per_frame": 1, "images_per_shard": 1, "fingerprint": {}}
    return CacheLayout(taps=tuple(taps), agents=AGENTS, **facts)


def byte_ratios() -> dict[str, float]:
    """Bytes of an image, compact over exact."""
    layouts = {f"sd {h}x{w}": sd_layout(h, w) for h, w in ((225, 400), (448, 800))}
    specs = FeatureExtractor(settings=ExtractSettings(device="cpu")).specs
    layouts["tiny-street 225x400"] = replace(layouts["sd 225x400"], taps=tuple(specs.values()))
    return {
        name: replace(layout, profile="compact").bytes_per_image / layout.bytes_per_image
        for name, layout in layouts.items()
    }


def write_random(path: Path, profile: str) -> FeatureReader:
    """A cache of full-size random features."""
    layout, rng = sd_layout(225, 400), np.random.default_rng(0)
    row = {
        name: rng.integers(0, 256, (1, *array.row_shape), np.uint8)
        if array.dtype == np.uint8
        else rng.standard_normal((1, *array.row_shape), np.float32)
        for name, array in layout.computed.items()
    }
    keys = [str(number) for number in range(READ_IMAGES)]
    facts: dict[str, Any] = {"image_keys": keys, "images_per_frame": 1, "fingerprint": {}, "profile": profile}
    with CacheWriter.open(path, taps=layout.taps, agents=AGENTS, shard_bytes=40_000_000, **facts) as writer:
        for shard in writer.pending_shards():
            many = {name: np.repeat(values, len(shard.rows), axis=0) for name, values in row.items()}
            write_shard(writer, shard, features_of(many), {})
    return FeatureReader(path)


def prepared(features: ImageFeatures, taps: dict[str, TapSpec]) -> device.ImageBatch:
    """A batch read, as the network takes it."""
    maps, agents, scales = (
        {key: torch.from_numpy(values) for key, values in getattr(features, name).items()}
        for name in ("maps", "agents", "scales")
    )
    return normalised(taps, maps, agents, scales)


def rates(folder: Path) -> dict[str, float]:
    """Images a second that are read, and that are read and prepared; ratios of the profiles in alternating rounds."""
    readers = {profile: write_random(folder / profile, profile) for profile in PROFILES}
    buffers = {profile: reader.allocate(BATCH) for profile, reader in readers.items()}
    seconds: dict[str, list[float]] = {}
    order = np.random.default_rng(1)
    for reader in readers.values():
        reader.read(range(READ_IMAGES))  # checks every row once
    for _ in range(15):
        rows = order.integers(0, READ_IMAGES, BATCH)
        for profile, reader in readers.items():
            begin = time.thread_time()
            features = reader.read(rows, buffers[profile])
            middle = time.thread_time()
            prepared(features, reader.taps)
            seconds.setdefault(f"read {profile}", []).append(middle - begin)
            seconds.setdefault(f"prepare {profile}", []).append(time.thread_time() - middle)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    speeds = {f"{name}, images/s": BATCH / value for name, value in median.items()}
    ratios = {
        f"{part}, compact over exact": median[f"{part} exact"] / median[f"{part} compact"]
        for part in ("read", "prepare")
    }
    return {**speeds, **ratios, **decoders()}


def decoders() -> dict[str, float]:
    """Million values a second: encoding, and decoding by the three ways that were tried."""
    values = np.random.default_rng(0).standard_normal((BATCH, *sd_shapes(225, 400)["up3"])).astype(np.float16)
    (codes, scales), table = encode(values, 1), torch.from_numpy(E4M3)
    on_device, factors = torch.from_numpy(codes), torch.from_numpy(scales)
    scale, offset = (factors.float()[:, place, :, None, None] for place in (0, 1))
    ways: dict[str, Callable[[], Any]] = {
        "encode": lambda: encode(values, 1),
        "decode": lambda: device.decode(on_device, factors, 1),
        "decode by torch.float8_e4m3fn": lambda: on_device.view(torch.float8_e4m3fn).float().mul_(scale).add_(offset),
        "decode by table": lambda: table[on_device.int()].mul_(scale).add_(offset),
        "float16 to float32": torch.from_numpy(values).float,
    }
    found = {}
    for name, work in ways.items():
        times = []
        for _ in range(7):
            begin = time.thread_time()
            work()
            times.append(time.thread_time() - begin)
        found[f"{name}, M values/s"] = values.size / statistics.median(times) / 1e6
    return found


def trained(folder: Path, frames: int, steps: int) -> dict[str, Any]:
    """Final mIoU (xM, test split of the target) of the demo's setting in both profiles, over the seeds."""
    city = folder / "city"
    jobs.synthesize(city, frames=frames, seed=0, cameras="CAM_FRONT")
    milestones = [steps * 8 // 11, steps * 10 // 11]
    scores: dict[str, list[float]] = {profile: [] for profile in PROFILES}
    sizes = {}
    for profile in PROFILES:
        workspace = Workspace(home=folder / profile)
        jobs.prepare("nuscenes", city, version=None, cameras="CAM_FRONT", workspace=workspace)
        extracted = jobs.extract_features(
            "nuscenes",
            "demo",
            [f"extract.profile={profile}"],
            None,
            retry_failed=False,
            sharing=Sharing(),
            workspace=workspace,
        )
        sizes[profile] = sum(
            file.stat().st_size for file in Path(extracted.result["cache"]).rglob("c/**/*") if file.is_file()
        )
    for seed, profile in itertools.product(SEEDS, PROFILES):
        workspace = Workspace(home=folder / profile)
        changes = [
            f"extract.profile={profile}",
            f"train.seed={seed}",
            f"train.steps={steps}",
            f"train.milestones={milestones}",
            f"train.validate_every={steps // 4}",
        ]
        begin = time.perf_counter()
        jobs.train("demo", changes, cached=True, run=None, workspace=workspace)
        scores[profile].append(100 * float(TrainedRun.open(workspace, None).score().miou["xm"] or 0))
        log(f"seed {seed}, {profile}: xM mIoU {scores[profile][-1]:.2f} % ({time.perf_counter() - begin:.0f} s)")
    means = {profile: float(np.mean(values)) for profile, values in scores.items()}
    deviations = {profile: float(np.std(values, ddof=1)) for profile, values in scores.items()}
    return {
        "frames": frames,
        "steps": steps,
        "miou": scores,
        "mean": means,
        "deviation": deviations,
        "difference over deviation": abs(means["compact"] - means["exact"]) / max(deviations.values()),
        "bytes, compact over exact": sizes["compact"] / sizes["exact"],
    }


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4, help="of each of three domains, and random images a tap")
    parser.add_argument("--train", action="store_true", help="train with both profiles too")
    parser.add_argument("--frames", type=int, default=96, help="of the city, with --train")
    parser.add_argument("--steps", type=int, default=220, help="of each training, with --train")
    parser.add_argument("--work", type=Path, help="folder for caches and runs; a temporary one by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        log("cosines")
        table = {**cosines(city_features(options.pictures)), **cosines(heavy_features(options.pictures))}
        cache = [schemes["cache"] for schemes in table.values()]
        result: dict[str, Any] = {
            "bytes, compact over exact": byte_ratios(),
            "cosine": {key: min(row[key] for row in cache) for key in cache[0]},
            "cosines": table,
        }
        log("rates")
        result["rates"] = rates(folder)
        if options.train:
            result["train"] = trained(folder, options.frames, options.steps)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
