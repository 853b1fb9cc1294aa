"""How fast features come back: the reader and the loader against raw pread, zarr-python, HDF5 and one file a sample.

``python tests/benchmarks/cache.py`` writes the same random features in each form (the taps of SD at 448 x 800, their
channels divided by ``--divide``: about 0.45 MB a sample), reads random batches of eight in each, warm and cold, and
prints one JSON object as its last line: samples a second and ratios. In a round every method has its turn on the same
rows; rates are medians over the rounds, ratios medians of the rounds' ratios.

Raw pread is the limit: the same bytes from the same files into the same buffer by one thread, files open, nothing
checked. Cold means that the files were dropped from the page cache with ``posix_fadvise(POSIX_FADV_DONTNEED)`` before.
A cold epoch is the loader over all rows: shuffled over all, and by blocks of a shard with ``train.shuffle_block``.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
import zarr
from xd3d.cache.layout import CacheLayout
from xd3d.cache.loader import load_batches
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import TapSpec, features_of, named_arrays
from xd3d.cache.writer import CacheWriter
from xd3d.stages.train.loader import epoch_order

sys.path.insert(0, str(Path(__file__).parents[1]))
from numpy_encoder import write_shard

BATCH = 8
AGENTS = 100
TAPS = {"up0": (1280, 7, 13), "up1": (1280, 14, 25), "up2": (640, 28, 50), "up3": (320, 56, 100)}
SLOW = {"zarr": 8}  #: these read one batch of so many, or a round would take minutes

Buffers = dict[str, np.ndarray]
Method = Callable[[Iterable[Sequence[int]], Buffers], None]


def taps(divide: int) -> list[TapSpec]:
    """The taps of SD at 448 x 800 with fewer channels."""
    return [
        TapSpec(name=name, channels=max(1, channels // divide), height=height, width=width, extent=(height, width))
        for name, (channels, height, width) in TAPS.items()
    ]


def fill(buffers: Buffers, rng: np.random.Generator) -> None:
    """Random finite values."""
    for values in buffers.values():
        bits, ones = (np.uint16, 0x3FFF) if values.dtype == np.float16 else (np.uint32, 0x3FFFFFFF)
        values.view(bits)[...] = rng.integers(0, ones, values.shape, dtype=bits)


def write_forms(folder: Path, images: int, divide: int, shard_bytes: int) -> None:
    """The same features as a cache, as HDF5 and as one file a sample."""
    rng = np.random.default_rng(0)
    (folder / "npy").mkdir(parents=True)
    with (
        CacheWriter.open(
            folder / "cache",
            taps=taps(divide),
            agents=AGENTS,
            image_keys=[str(row) for row in range(images)],
            images_per_frame=1,
            fingerprint={},
            shard_bytes=shard_bytes,
        ) as writer,
        h5py.File(folder / "all.h5", "w", libver="latest") as file,
    ):
        arrays = writer.layout.arrays
        sets = {name: file.create_dataset(name, (images, *a.row_shape), a.dtype) for name, a in arrays.items()}
        for shard in writer.pending_shards():
            features = FeatureReader(folder / "cache").allocate(len(shard.rows))
            buffers = named_arrays(features)
            fill(buffers, rng)
            write_shard(writer, shard, features, {})
            for name, values in buffers.items():
                sets[name][shard.first : shard.last] = values
            for place, row in enumerate(shard.rows):
                parts = [values[place].reshape(-1).view(np.uint8) for values in buffers.values()]
                np.save(folder / "npy" / f"{row}.npy", np.concatenate(parts))
    os.sync()


def pread(path: Path, layout: CacheLayout, stack: ExitStack) -> Method:
    """The limit: one positioned read a row and array."""
    files: dict[str, list[int]] = {}
    for name, array in layout.arrays.items():
        files[name] = [os.open(path / array.shard_file(shard.index), os.O_RDONLY) for shard in layout.shards()]
        for number in files[name]:
            stack.callback(os.close, number)

    def read(batches: Iterable[Sequence[int]], out: Buffers) -> None:
        parts = [
            (files[name], array.row_bytes, memoryview(out[name].reshape(-1).view(np.uint8)))
            for name, array in layout.arrays.items()
        ]
        for rows in batches:
            for numbers, size, data in parts:
                for place, row in enumerate(rows):
                    shard, slot = divmod(row, layout.images_per_shard)
                    os.preadv(numbers[shard], [data[place * size : (place + 1) * size]], slot * size)

    return read


def direct(reader: FeatureReader) -> Method:
    """Our reader in one thread; a new one checks every row's crc32c the first time."""

    def read(batches: Iterable[Sequence[int]], out: Buffers) -> None:
        features = features_of(out)
        for rows in batches:
            reader.read(rows, features)

    return read


def loader(reader: FeatureReader) -> Method:
    """Our loader with two threads, its consumer taking batch after batch."""

    def read(batches: Iterable[Sequence[int]], out: Buffers) -> None:
        for _ in load_batches(reader, batches):
            pass

    return read


def zarr_python(path: Path) -> Method:
    """zarr-python's default pipeline, a row at a time: on sharded arrays faster than its ``oindex``."""
    group = zarr.open_group(path, mode="r")

    def read(batches: Iterable[Sequence[int]], out: Buffers) -> None:
        arrays = [(group[name], values) for name, values in out.items()]
        for rows in batches:
            for array, values in arrays:
                for place, row in enumerate(rows):
                    values[place] = array[row]

    return read


def hdf5(file: h5py.File) -> Method:
    """HDF5, contiguous and without filters, straight into the buffer."""

    def read(batches: Iterable[Sequence[int]], out: Buffers) -> None:
        sets = [(file[name], values) for name, values in out.items()]
        for rows in batches:
            for stored, values in sets:
                for place, row in enumerate(rows):
                    stored.read_direct(values, np.s_[row], np.s_[place])

    return read


def npy(folder: Path) -> Method:
    """One ``.npy`` a sample that holds the bytes of all arrays, cut up into the buffer."""

    def read(batches: Iterable[Sequence[int]], out: Buffers) -> None:
        for rows in batches:
            for place, row in enumerate(rows):
                sample, start = np.load(folder / f"{row}.npy"), 0
                for values in out.values():
                    target = values[place].reshape(-1).view(np.uint8)
                    target[:] = sample[start : start + target.nbytes]
                    start += target.nbytes

    return read


def drop(folder: Path) -> None:
    """Take every file under ``folder`` out of the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            number = os.open(file, os.O_RDONLY)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(number)


def rate(method: Method, rows: np.ndarray, out: Buffers, part: int = 1) -> float:
    """Samples a second over whole batches of ``rows``."""
    batches = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH).tolist()
    batches = batches[: max(1, len(batches) // part)]
    begin = time.perf_counter()
    method(batches, out)
    return len(batches) * BATCH / (time.perf_counter() - begin)


def disk_requests(folder: Path) -> int:
    """Reads that the disk under ``folder`` has done for anybody, as Linux counts them; 0 where it does not."""
    device = folder.stat().st_dev
    for line in Path("/proc/diskstats").read_text().splitlines():
        major, minor, _, reads, *_ = line.split()
        if (int(major), int(minor)) == (os.major(device), os.minor(device)):
            return int(reads)
    return 0


def measure(folder: Path, images: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Samples a second of every method, warm (``pread``) and cold (``cold_pread``), by round; and disk requests."""
    path, rng = folder / "cache", np.random.default_rng(1)
    rates: dict[str, list[float]] = defaultdict(list)
    requests: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        trusted = FeatureReader(path)
        block = trusted.layout.images_per_shard
        out = named_arrays(trusted.allocate(BATCH))
        methods = {
            "pread": pread(path, trusted.layout, stack),
            "direct": direct(trusted),
            "loader": loader(trusted),
            "zarr": zarr_python(path),
            "hdf5": hdf5(stack.enter_context(h5py.File(folder / "all.h5"))),
            "npy": npy(folder / "npy"),
        }
        for name in ("direct", "hdf5", "npy"):  # into the page cache; the reader has checked every row from here on
            rate(methods[name], np.arange(images), out)
        for _ in range(rounds):
            order = rng.permutation(images)
            for name, method in {**methods, "checked": direct(FeatureReader(path))}.items():
                rates[name].append(rate(method, order, out, SLOW.get(name, 1)))
        sweeping = FeatureReader(path, whole_shards=True)
        rate(direct(sweeping), np.arange(images), out)
        epochs = {"cold_epoch": (loader(trusted), None), "cold_epoch_in_blocks": (loader(sweeping), block)}
        for turn in range(rounds):
            order = rng.permutation(images)[: max(BATCH, images // 4)]
            for name, method in methods.items():
                drop(folder)
                rates[f"cold_{name}"].append(rate(method, order, out, SLOW.get(name, 1)))
            for name, (method, size) in epochs.items():
                drop(folder)
                before = disk_requests(folder)
                rates[name].append(rate(method, epoch_order(images, 1, turn, size), out))
                requests[name].append((disk_requests(folder) - before) / images)
    found = {f"{name}_requests_per_sample": round(statistics.median(values), 2) for name, values in requests.items()}
    return rates, found


def report(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians of rates, and of ratios within a round."""

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True)), 3)

    found = {f"{name}_samples_per_second": round(statistics.median(values), 1) for name, values in rates.items()}
    for state, before in (("warm", ""), ("cold", "cold_")):
        for other in ("pread", "zarr", "hdf5", "npy"):
            found[f"{state}_random_over_{other}"] = ratio(f"{before}direct", f"{before}{other}")
        found[f"{'' if state == 'warm' else before}loader_over_pread"] = ratio(f"{before}loader", f"{before}pread")
    found["checked_over_pread"] = ratio("checked", "pread")
    found["cold_blocks_over_full_shuffle"] = ratio("cold_epoch_in_blocks", "cold_epoch")
    return found


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to write (default: the folder for temporary files)")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--divide", type=int, default=16, help="divides the channels of SD's taps")
    parser.add_argument("--shard-mb", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_forms(Path(folder), options.images, options.divide, options.shard_mb * 1_000_000)
        layout = FeatureReader(Path(folder) / "cache").layout
        facts = {"images": options.images, "rounds": options.rounds, "bytes_per_sample": layout.bytes_per_image}
        rates, requests = measure(Path(folder), options.images, options.rounds)
        print(json.dumps({**facts, **report(rates), **requests}))


if __name__ == "__main__":
    main()
