"""How fast stage two is: cached against online, torch against spconv, and what the cost of a step grows with.

``python tests/benchmarks/train.py --model FOLDER`` writes a few frames (a street swept by a LiDAR, pictures) and trains
the published network on them, with random diffusion weights (configs are enough). Compared are processor seconds beside
those on the clock: on a busy machine the former are the ones to read. All ratios come from one run; memory is measured
in a process of its own. Progress goes to stderr; the last line of stdout is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from made_index import pictures_index
from xd3d.cache.reader import FeatureReader
from xd3d.stages.datasets.labels import get_merge
from xd3d.stages.extract.job import extract_features
from xd3d.stages.extract.online import OnlineExtractor
from xd3d.stages.extract.settings import ExtractSettings
from xd3d.stages.train.domain import Domain
from xd3d.stages.train.loop import train
from xd3d.stages.train.network import Network, choose_taps
from xd3d.stages.train.optimise import Stepper
from xd3d.stages.train.run_log import read_log
from xd3d.stages.train.settings import AugmentSettings, FusionSettings, ModelSettings, TrainSettings
from xd3d.stages.train.step_batch import StepBatch, StepMaker

RAW_LABELS = np.array([24, 26, 28, 30], np.uint8)  # road, sidewalk, manmade, vegetation
STILL = AugmentSettings(rotation_noise=0.0, translate=False, rotate=False, flip="none")
#: spconv keys voxels in 32 bits on the CPU, so the backends are compared in a cube of this edge.
SMALL_CUBE = 1000


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    if given.memory_of:
        print(json.dumps(memory(given)))
        return
    facts: dict[str, Any] = {
        "model": Path(given.model).name,
        "size": list(given.size),
        "preset": given.preset,
        "batch_size": given.batch_size,
        "points_a_frame": given.points,
        "threads": given.threads,
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:
        street = write_street(Path(folder), given.batch_size * 2, given.points, tuple(given.size))
        facts |= cached_against_online(given, street, Path(folder))
        facts |= torch_against_spconv(given, street)
        street = replace(street, features=FeatureReader(Path(folder) / "cache"))
        facts |= against_lidar_only(given, street)
        facts |= against_points(given, street, Path(folder))
        facts |= against_tokens(given, street)
        facts["peak_bytes"] = {name: peak_of(name, Path(folder) / "cache") for name in ("3d-only", "full")}
    print(json.dumps(facts))


def peak_of(variant: str, cache: Path) -> int:
    """Peak memory of a process of its own that does a few steps."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", variant, "--cache", str(cache)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-street", help="a name or a folder in diffusers' layout")
    parser.add_argument("--weights", choices=("pretrained", "random"), default="random")
    parser.add_argument("--size", type=int, nargs=2, default=(225, 400), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--preset", choices=("full", "slim"), default="full")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--points", type=int, default=35_000, help="of a frame")
    parser.add_argument("--tokens", type=int, nargs="+", default=(25, 100, 400))
    parser.add_argument("--steps", type=int, default=6, help="from the cache; the first warms up and does not count")
    parser.add_argument("--online-steps", type=int, default=2, help="with the model in the loop, the first as well")
    parser.add_argument("--repeat", type=int, default=2, help="of each pass of the network, the best counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=("3d-only", "full"), help="measure peak memory and nothing else")
    parser.add_argument("--cache", type=Path, help="features for --memory-of full")
    return parser.parse_args()


def cached_against_online(given: argparse.Namespace, street: Domain, folder: Path) -> dict[str, Any]:
    """Train from a cache and then with the model in the loop, through the loop that users run."""
    settings = ExtractSettings(
        model=given.model, weights=given.weights, image_size=tuple(given.size), dtype="float32", device="cpu"
    )
    tell("stage one")
    begin = time.process_time()
    extract_features(street.index, settings, folder / "cache")
    extraction = (time.process_time() - begin) / len(street.index.images.key)
    sources = {
        "cached": (FeatureReader(folder / "cache"), given.steps),
        "online": (OnlineExtractor(index=street.index, settings=settings), given.online_steps),
    }
    facts: dict[str, Any] = {"cpu_seconds_an_image": extraction}
    for name, (features, steps) in sources.items():
        tell(f"training, {name}")
        run = folder / name
        train(
            run=run,
            source=replace(street, features=features),
            validation=None,
            model=ModelSettings(preset=given.preset, backend="torch"),
            fusion=FusionSettings(),
            augment=AugmentSettings(),
            settings=TrainSettings(
                steps=steps, batch_size=given.batch_size, workers=2 if name == "cached" else 0, device="cpu"
            ),
        )
        records = read_log(run)[1:]
        facts[f"seconds_a_step_{name}"] = fmean(record["seconds"] for record in records)
        facts[f"waiting_{name}"] = sum(each["wait"] * each["seconds"] for each in records) / sum(
            each["seconds"] for each in records
        )
    facts["ratio_online_to_cached"] = facts["seconds_a_step_online"] / facts["seconds_a_step_cached"]
    tell(json.dumps(facts))
    return facts


def torch_against_spconv(given: argparse.Namespace, street: Domain) -> dict[str, Any]:
    """A step of the 3D network alone on either backend."""
    seconds = {}
    for backend in ("torch", "spconv"):
        model = ModelSettings(preset=given.preset, backend=backend, full_scale=SMALL_CUBE)
        seconds[backend] = timed_step(given, street, model, FusionSettings(variant="3d-only"))
    return {
        "cpu_seconds_torch": seconds["torch"],
        "cpu_seconds_spconv": seconds["spconv"],
        "ratio_spconv_to_torch": seconds["spconv"] / seconds["torch"],
    }


def against_lidar_only(given: argparse.Namespace, street: Domain) -> dict[str, Any]:
    """What the image adds to a step from the cache: the method against LiDAR alone, in turn, medians of five."""
    model = ModelSettings(preset=given.preset)
    networks = {
        "3d-only": FusionSettings(variant="3d-only"),
        "full": FusionSettings(),
        "depth": FusionSettings(depth="sparse"),
    }
    steps = {name: made(given, street, model, fusion) for name, fusion in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(6):
        for name, (stepper, batch) in steps.items():
            took = processor_seconds(lambda: stepper.step(turn, [(batch, 0.0)]))  # noqa: B023 - called at once
            seconds[name] += [took] if turn else []  # the first warms up
    medians = {name: median(took) for name, took in seconds.items()}
    tell(f"a step: {medians}")
    return {
        "cpu_seconds_lidar_only": medians["3d-only"],
        "cpu_seconds_full": medians["full"],
        "ratio_full_to_lidar_only": medians["full"] / medians["3d-only"],
        "ratio_depth_to_full": medians["depth"] / medians["full"],
    }


def against_points(given: argparse.Namespace, street: Domain, folder: Path) -> dict[str, Any]:
    """A step of the whole network on ever more points of as many frames."""
    counts = [given.points // 4, given.points // 2, given.points]
    seconds = []
    for points in counts:
        other = write_street(folder / f"street-{points}", given.batch_size, points, tuple(given.size))
        other = replace(other, features=street.features)
        seconds.append(timed_step(given, other, ModelSettings(preset=given.preset), FusionSettings()))
    return {
        "points": counts,
        "cpu_seconds_by_points": seconds,
        "exponent_points": float(np.polyfit(np.log(counts), np.log(seconds), 1)[0]),
    }


def against_tokens(given: argparse.Namespace, street: Domain) -> dict[str, Any]:
    """A step of the network with the paper's queries, with ever more tokens a query set."""
    model = ModelSettings(preset=given.preset)
    paper = {"inject": "none", "context": "none", "queries": "agents", "decoupling": "loss"}
    seconds = [timed_step(given, street, model, FusionSettings(tokens=tokens, **paper)) for tokens in given.tokens]
    return {
        "tokens": list(given.tokens),
        "cpu_seconds_by_tokens": seconds,
        "ratio_most_to_least_tokens": seconds[-1] / seconds[0],
    }


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of three steps, the libraries included."""
    with tempfile.TemporaryDirectory() as folder:
        street = write_street(Path(folder), given.batch_size, given.points, tuple(given.size))
        street = replace(street, features=FeatureReader(given.cache) if given.cache else None)
        fusion = FusionSettings(variant=given.memory_of)
        stepper, batch = made(given, street, ModelSettings(preset=given.preset), fusion)
        for step in range(3):
            stepper.step(step, [(batch, 0.0)])
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"peak_bytes": 1024 * int(peak.split()[1])}  # getrusage would count what the parent had when it forked


def timed_step(given: argparse.Namespace, street: Domain, model: ModelSettings, fusion: FusionSettings) -> float:
    """Processor seconds of a step, forward, backward and update; the first warms up."""
    stepper, batch = made(given, street, model, fusion)
    best = float("inf")
    for step in range(given.repeat + 1):
        seconds = processor_seconds(lambda step=step: stepper.step(step, [(batch, 0.0)]))
        best = seconds if step == 1 else min(best, seconds)
    tell(
        f"{model.backend} {fusion.variant} {fusion.tokens} tokens, {batch.points} points: {best:.2f} processor seconds"
    )
    return best


def made(
    given: argparse.Namespace, street: Domain, model: ModelSettings, fusion: FusionSettings
) -> tuple[Stepper, StepBatch]:
    """A network ready for its first step, and a batch of ``street`` for it."""
    torch.manual_seed(0)
    network = Network(
        model=model,
        fusion=fusion,
        classes=street.merge.classes,
        taps=choose_taps(fusion, street.features.taps if street.features else {}),
        cameras=1,
        device=torch.device("cpu"),
    )
    settings = TrainSettings(batch_size=given.batch_size, workers=0, device="cpu")
    make = StepMaker(
        source=street, target=None, plan=network.plan, augment=STILL, settings=settings, device=network.device
    )
    return Stepper(network.train(), torch.ones(len(street.merge.classes)), settings), make(0, 0)


def processor_seconds(work: Callable[[], object]) -> float:
    """What ``work`` takes of this process's processors."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def write_street(folder: Path, frames: int, points: int, size: tuple[int, int]) -> Domain:
    """``frames`` sweeps of a street with houses and trees, all points in view of a camera, and a picture each."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = size
    rng = np.random.default_rng(0)
    for row in range(frames):
        cloud, raw = sweep(rng, points)
        cloud.tofile(folder / f"{row}.bin")
        raw.tofile(folder / f"{row}.label")
    index = pictures_index(folder, frames, size)
    camera_from_lidar = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    intrinsics = [[0.5 * width, 0, width / 2], [0, 0.5 * width, height / 2], [0, 0, 1]]
    sweeps, labels = (np.array([f"{row}.{kind}" for row in range(frames)]) for kind in ("bin", "label"))
    index = replace(
        index,
        dataset="nuscenes",
        frames=replace(index.frames, sweep=sweeps, labels=labels),
        images=replace(
            index.images,
            intrinsics=np.tile(intrinsics, (frames, 1, 1)),
            camera_from_lidar=np.tile(camera_from_lidar, (frames, 1, 1)),
        ),
    )
    return Domain(index=index, frames=np.arange(frames), merge=get_merge("nuscenes-6"))


def sweep(rng: np.random.Generator, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Where rays ahead meet the ground, the walls of a street 18 m wide, or the trees that stand before them."""
    azimuth, elevation = rng.uniform(-0.75, 0.75, points), np.radians(rng.uniform(-25, 4, points))
    across, along, up = np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), np.sin(elevation)
    ground = np.where(up < 0, -1.8 / np.minimum(up, -1e-6), np.inf)
    wall = 9.0 / np.maximum(np.abs(across), 1e-6) - 2 * (rng.random(points) < 0.3)
    reach = np.minimum(np.minimum(ground, wall), 80.0) + rng.normal(0, 0.02, points)
    cloud = np.zeros((points, 5), np.float32)
    cloud[:, :3] = np.stack([across, along, up], 1) * reach[:, None]
    kind = np.where(ground < wall, (np.abs(cloud[:, 0]) > 5).astype(int), 2 + (cloud[:, 2] > 0))
    return cloud, RAW_LABELS[kind]


def tell(text: str) -> None:
    """Say on stderr how far the benchmark is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
