"""A small cache to write, read and damage: two taps (one of them ``rgb``), frames of two images, five shards."""

import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from xd3d.cache.layout import CacheLayout
from xd3d.cache.schema import ImageFeatures, TapSpec, named_arrays
from xd3d.cache.writer import CacheWriter

sys.path.insert(0, str(Path(__file__).parents[1]))  # the scripts beside this file import it without pytest
from numpy_encoder import write_shard

IMAGES = 18
AGENTS = 3
TAPS = (
    TapSpec(name="up1", channels=6, height=3, width=5, extent=(2.75, 5.0)),
    TapSpec(name="rgb", channels=3, height=4, width=7, extent=(4.0, 7.0), dtype="uint8"),
)
FINGERPRINT = {"model": "tiny-street", "agents": {"count": AGENTS, "rounds": 10}, "image_size": [225, 400]}
SHARD_BYTES = 1500


def _features(rows: Iterable[int]) -> ImageFeatures:
    generators = [np.random.default_rng([7, row]) for row in rows]
    return ImageFeatures(
        maps={
            "up1": np.stack([g.standard_normal((6, 3, 5), dtype=np.float32) for g in generators]),
            "rgb": np.stack([g.integers(0, 256, (3, 4, 7), dtype=np.uint8) for g in generators]),
        },
        agents={"up1": np.stack([g.standard_normal((AGENTS, 6), dtype=np.float32) for g in generators])},
        geometry=np.stack([g.random((AGENTS, 5), dtype=np.float32) for g in generators]),
    )


def _with_memberships(features: ImageFeatures, agents: int = AGENTS) -> ImageFeatures:
    """The features with memberships on the grid of ``up1``, drawn from the image."""
    images, shape = len(features.geometry), (4, TAPS[0].height, TAPS[0].width)
    seeds = (features.geometry[:, 0, 0] * 2**24).astype(np.int64)
    drawn = [np.random.default_rng(seed) for seed in seeds]
    kind = np.uint8 if agents <= 256 else np.uint16
    assignment = [g.integers(0, agents, shape).astype(kind) for g in drawn]
    membership = [g.integers(0, 64, shape, dtype=np.uint8) for g in drawn]
    assert len(assignment) == images
    return replace(features, assignment=np.stack(assignment), membership=np.stack(membership))


def _open(path: Path, **changes: object) -> CacheWriter:
    settings: dict[str, object] = {
        "taps": TAPS,
        "agents": AGENTS,
        "image_keys": [f"image-{row:04d}" for row in range(IMAGES)],
        "images_per_frame": 2,
        "fingerprint": FINGERPRINT,
        "shard_bytes": SHARD_BYTES,
    }
    return CacheWriter.open(path, **{**settings, **changes})


@pytest.fixture(scope="session")
def features_of_rows() -> Callable[[Iterable[int]], ImageFeatures]:
    """The features of image rows, float32, the same for a row whatever it is asked with."""
    return _features


@pytest.fixture(scope="session")
def with_memberships() -> Callable[..., ImageFeatures]:
    """Call it with features for the same with memberships."""
    return _with_memberships


@pytest.fixture
def second_cache(tmp_path: Path) -> Path:
    """A complete cache of format 2 of the test's own."""
    with _open(tmp_path / "second", grid=TAPS[0]) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, _with_memberships(_features(shard.rows)), {})
    return tmp_path / "second"


@pytest.fixture
def first_format(tmp_path: Path) -> Path:
    """A cache that the last version of format 1 wrote: five images of a random model, no third shard, row 3 failed."""
    with zipfile.ZipFile(Path(__file__).with_name("format1.zip")) as archive:
        archive.extractall(tmp_path / "first")
    return tmp_path / "first" / "cache"


@pytest.fixture(scope="session")
def open_writer() -> Callable[..., CacheWriter]:
    """Open a writer of the small cache; keywords replace single settings of ``CacheWriter.open``."""
    return _open


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of flushes cost nothing there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder of the test's own, in memory."""
    with _folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def whole_cache() -> Iterator[Path]:
    """A complete cache that no test changes."""
    with _folder() as folder:
        yield _complete(folder / "cache")


def _complete(path: Path) -> Path:
    with _open(path) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, _features(shard.rows), {})
    return path


@pytest.fixture
def cache(whole_cache: Path, tmp_path: Path) -> Path:
    """A complete cache of the test's own."""
    return Path(shutil.copytree(whole_cache, tmp_path / "cache"))


@pytest.fixture
def layout() -> CacheLayout:
    """The layout of the small cache."""
    return CacheLayout(
        taps=TAPS,
        agents=AGENTS,
        image_keys=tuple(f"image-{row:04d}" for row in range(IMAGES)),
        images_per_frame=2,
        images_per_shard=4,
        fingerprint=FINGERPRINT,
    )


@pytest.fixture(scope="session")
def recompress() -> Callable[[Path, str], None]:
    """Store one array of a cache anew with a compressor the reader does not know, as another tool might."""

    def store(cache: Path, name: str) -> None:
        values = zarr.open_array(cache / name, mode="r")[:]
        shutil.rmtree(cache / name)
        row = values.shape[1:]
        stored = zarr.create_array(
            cache / name,
            shape=values.shape,
            chunks=(1, *row),
            shards=(6, *row),
            dtype=values.dtype,
            compressors=zarr.codecs.ZstdCodec(level=1),
        )
        stored[:] = values

    return store


@pytest.fixture
def assert_same() -> Callable:
    """Call it with two batches of features that must be equal, array by array."""

    def check(first, second):
        first, second = named_arrays(first), named_arrays(second)
        assert first.keys() == second.keys()
        for name, values in first.items():
            np.testing.assert_array_equal(values, second[name], err_msg=name)

    return check
