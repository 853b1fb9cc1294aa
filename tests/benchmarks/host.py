"""What stage one costs the host: decoding, and everything between the device and the disk.

``python tests/benchmarks/host.py`` feeds stage one with a model that costs nothing: its features, in the shapes of
Stable Diffusion at 448 x 800, are there already as a device leaves them. For both profiles it prints milliseconds, of
wall time and of processor time, an image: ``whole``, the loop over pictures of 900 x 1600; ``without_decoding``, the
loop over ready pictures; and its parts ``decode`` (by the threads of stage one), ``assemble`` (batches
to shards), ``checksum`` and ``write`` (staging, flushing, renaming, commit record).

The limit of both does the least that is possible with as many threads as stage one has: the same decoder and resize,
one copy of the bytes that are stored, one ``pwrite``. Every round does everything in turn; figures are medians over the
rounds, ratios medians of the rounds' ratios. With ``--scaled`` JPEGs are decoded at a smaller scale. Files go to
``--folder``; in memory (/dev/shm) the processor is measured, elsewhere the disk too. The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from made_index import bare_index
from PIL import Image
from streets import PHOTO_QUALITY, photo
from xd3d.cache.layout import PROFILES
from xd3d.cache.schema import TapSpec
from xd3d.cache.stored import StoredRows
from xd3d.cache.writer import CacheWriter
from xd3d.processes import processors
from xd3d.stages.datasets.index import FrameIndex
from xd3d.stages.extract.encode import stored_rows
from xd3d.stages.extract.extractor import StageClock
from xd3d.stages.extract.images import PictureSource
from xd3d.stages.extract.overlap import decode_ahead, fill_shards
from xd3d.stages.extract.settings import Decoding

from cache import AGENTS, taps

BATCH = 8
RGB = TapSpec(name="rgb", channels=3, height=112, width=200, extent=(112.0, 200.0), dtype="uint8")
GRID = (56, 100)


class FreeModel:
    """A model that costs nothing: the rows of every batch lie ready, as a device leaves them."""

    def __init__(self, profile: str) -> None:
        self.clock, self.batch_size = StageClock(), BATCH
        rng = np.random.default_rng(0)
        features = {f"features/{t.name}": rng.standard_normal((BATCH, t.channels, t.height, t.width)) for t in taps(1)}
        features |= {f"agents/{tap.name}": rng.standard_normal((BATCH, AGENTS, tap.channels)) for tap in taps(1)}
        features["agents/geometry"] = rng.random((BATCH, AGENTS, 5))
        tensors = {name: torch.from_numpy(values.astype(np.float32)) for name, values in features.items()}
        bytes_ = {"features/rgb": (3, 112, 200), "agents/assignment": (4, *GRID), "agents/membership": (4, *GRID)}
        for name, shape in bytes_.items():
            tensors[name] = torch.from_numpy(rng.integers(0, AGENTS, (BATCH, *shape), dtype=np.uint8))
        self.rows = stored_rows(tensors, profile)

    def begin(self, pictures: np.ndarray, keys: list[str]) -> Callable[[], StoredRows]:
        return partial(self.batch, len(keys))

    def batch(self, images: int) -> StoredRows:
        rows = range(images)
        return StoredRows(rows=rows, arrays={name: values[: len(rows)] for name, values in self.rows.arrays.items()})


class ReadyPictures(PictureSource):
    """Pictures that need no decoding."""

    def read(self, rows: Any) -> tuple[np.ndarray, dict[int, str]]:
        return np.zeros((len(rows), 3, *self.image_size), np.uint8), {}


def street_index(folder: Path, images: int) -> FrameIndex:
    """An index of JPEGs of 900 x 1600, which are written to ``folder``; eight streets again and again."""
    index, size = bare_index(images, 1), np.tile([1600, 900], (images, 1))
    paths = [f"{number}.jpg" for number in range(images)]
    for number, path in enumerate(paths[:8]):
        photo(number, 1600, 900).save(folder / path, quality=PHOTO_QUALITY)
    for number, path in enumerate(paths[8:]):
        shutil.copyfile(folder / paths[number % 8], folder / path)
    return replace(index, root=folder, images=replace(index.images, path=np.array(paths), size=size))


@contextmanager
def timed(found: dict[str, Any], name: str, images: int) -> Iterator[None]:
    """Milliseconds an image of the block, of wall and of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    found[name] = {
        "wall": (time.perf_counter() - wall) * 1e3 / images,
        "cpu": (time.process_time() - cpu) * 1e3 / images,
    }


def open_writer(folder: Path, index: FrameIndex, profile: str) -> CacheWriter:
    return CacheWriter.open(
        folder,
        taps=[*taps(1), RGB],
        agents=AGENTS,
        image_keys=list(map(str, index.images.key)),
        images_per_frame=1,
        fingerprint={},
        profile=profile,
        grid=taps(1)[-1],
    )


def loop(folder: Path, model: FreeModel, pictures: PictureSource, profile: str) -> None:
    """The loop of stage one over a new cache."""
    with tempfile.TemporaryDirectory(dir=folder) as place, open_writer(Path(place), pictures.index, profile) as writer:
        fill_shards(writer, writer.pending_shards(), model, pictures, lambda _: None)  # type: ignore[arg-type]


def parts(folder: Path, model: FreeModel, pictures: PictureSource, profile: str, found: dict[str, Any]) -> None:
    """Each part alone, in one thread but for decoding."""
    images = len(pictures)
    batches = [range(first, min(first + BATCH, images)) for first in range(0, images, BATCH)]
    with timed(found, "decode", images):
        for _ in decode_ahead(pictures, batches):
            pass
    with tempfile.TemporaryDirectory(dir=folder) as place, open_writer(Path(place), pictures.index, profile) as writer:
        shards = writer.pending_shards()
        joined = []
        with timed(found, "assemble", images):
            for shard in shards:
                starts = range(shard.first, shard.last, BATCH)
                rows = [range(first, min(first + BATCH, shard.last)) for first in starts]
                joined.append(StoredRows.join([model.batch(len(r)).renumbered(r) for r in rows]))
        with timed(found, "checksum", images):
            for stored in joined:
                for values in stored.arrays.values():
                    for value in values:
                        google_crc32c.value(value.reshape(-1).view(np.uint8))
        with timed(found, "commit", images):
            for shard, stored in zip(shards, joined, strict=True):
                writer.write_rows(shard, stored)
    commit = found.pop("commit")
    found["write"] = {kind: commit[kind] - found["checksum"][kind] for kind in commit}


def least(folder: Path, model: FreeModel, pictures: PictureSource, *, decode: bool) -> Callable[[], None]:
    """The limit: decode, copy and write as many bytes, in as many threads as there are processors."""
    row = np.concatenate([values[0].reshape(-1).view(np.uint8) for values in model.rows.arrays.values()])
    height, width = pictures.image_size

    def one(number: int, image: int) -> None:
        if decode:
            with Image.open(pictures.index.root / str(pictures.index.images.path[image])) as picture:
                if pictures.decoding == "scaled":
                    picture.draft("RGB", (width, height))
                np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        os.pwrite(number, row.copy(), image * row.nbytes)

    def run() -> None:
        with tempfile.TemporaryFile(dir=folder) as file, ThreadPoolExecutor(max(2, processors())) as pool:
            list(pool.map(lambda image: one(file.fileno(), image), range(len(pictures))))

    return run


def measure(folder: Path, profile: str, pictures: dict[str, PictureSource]) -> dict[str, Any]:
    """One round of one profile."""
    model, images = FreeModel(profile), len(pictures["real"])
    found: dict[str, Any] = {}
    for name, source, decode in (("whole", "real", True), ("without_decoding", "ready", False)):
        limit = least(folder, model, pictures["real"], decode=decode)
        with timed(found, f"{name}_limit", images):
            limit()
        with timed(found, name, images):
            loop(folder, model, pictures[source], profile)
    parts(folder, model, pictures["real"], profile, found)
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and the ratios of wall time to the limit."""
    facts: dict[str, Any] = defaultdict(dict)
    for name in rounds[0]:
        for kind in ("wall", "cpu"):
            facts[name][kind] = round(statistics.median(r[name][kind] for r in rounds), 2)
    for name in ("whole", "without_decoding"):
        ratios = [r[name]["wall"] / r[f"{name}_limit"]["wall"] for r in rounds]
        facts[name]["ratio_to_limit"] = round(statistics.median(ratios), 3)
    return dict(facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=104)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scaled", action="store_true", help="decode JPEGs at a smaller scale")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        index = street_index(folder, arguments.images)
        decoding: Decoding = "scaled" if arguments.scaled else "full"
        kinds = {"real": PictureSource, "ready": ReadyPictures}
        pictures = {
            kind: source(index=index, image_size=(448, 800), decoding=decoding) for kind, source in kinds.items()
        }
        rounds: dict[str, list[dict[str, Any]]] = {profile: [] for profile in PROFILES}
        for number in range(arguments.rounds):
            for profile, done in rounds.items():
                done.append(measure(folder, profile, pictures))
                sys.stderr.write(f"round {number + 1}, {profile}: {json.dumps(done[-1])}\n")
        size = (folder / "0.jpg").stat().st_size
    facts = {profile: summary(done) for profile, done in rounds.items()}
    about = {"images": arguments.images, "processors": processors(), "jpeg_bytes": size, "decoding": decoding}
    sys.stdout.write(json.dumps({**about, "milliseconds_an_image": facts}) + "\n")


if __name__ == "__main__":
    main()
