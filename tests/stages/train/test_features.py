"""A view is drawn for each image in training; features are read into memory that is reused."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy_encoder import write_shard
from xd3d.cache.reader import FeatureReader
from xd3d.cache.writer import CacheWriter
from xd3d.errors import CacheError, RunError
from xd3d.prefetch import map_ahead, ring_slots
from xd3d.stages.predict.inference import predict_frames
from xd3d.stages.train.checks import check_memberships
from xd3d.stages.train.features import draw_views, feature_readers, identity_views
from xd3d.stages.train.loader import Use, evaluation_batch, generator, training_batch
from xd3d.stages.train.settings import AugmentSettings

pytestmark = pytest.mark.usefixtures("one_thread")


class Views:
    """A source of several views an image, each image and view with features of its own; it notes what was read."""

    def __init__(self, source, views=("jitter:1", "hflip", "identity")):
        self._source, self.views = source, views
        self.taps, self.agents, self.grid = source.taps, source.agents, source.grid
        self.rows = []

    def require(self, rows):
        self._source.require(rows)

    def read(self, rows):
        self.rows.append(list(rows))
        return self._source.read(rows)


@pytest.fixture
def domain(make_domain):
    plain = make_domain(frames=4, cameras=2, points=100)
    return replace(plain, features=Views(plain.features))


def test_a_mirrored_image_takes_its_points_along(domain):
    frame = domain.load(0)
    for step in range(20):
        moved, drawn = draw_views(frame, domain.features, generator(1, Use.SAMPLE, step, 0))
        mirrored = (drawn == 1)[frame.projection_view]
        np.testing.assert_allclose(moved.projection_uv[mirrored, 0], 1 - frame.projection_uv[mirrored, 0], atol=1e-7)
        np.testing.assert_array_equal(moved.projection_uv[~mirrored], frame.projection_uv[~mirrored])
        np.testing.assert_array_equal(moved.projection_uv[:, 1], frame.projection_uv[:, 1])


def test_a_point_strictly_inside_stays_strictly_inside(domain):
    frame = domain.load(0)
    uv = frame.projection_uv.copy()
    uv[:, 0] = np.resize(np.array([1e-12, 2**-30, 1 - 2**-24, 0.5], np.float32), len(uv))
    source = Views(domain.features, ("hflip",))
    moved, _ = draw_views(replace(frame, projection_uv=uv), source, np.random.default_rng(0))
    assert ((moved.projection_uv > 0) & (moved.projection_uv < 1)).all()


def test_every_view_is_drawn_and_a_resumed_run_draws_the_same(domain, make_network, make_batch):
    network = make_network(domain)
    batches = [make_batch(domain, network, step=step) for step in range(10)]
    read = domain.features.rows
    assert {row % 3 for rows in read for row in rows} == {0, 1, 2}
    again = make_batch(domain, network, step=7)
    assert read[-1] == read[7]
    np.testing.assert_array_equal(again.images.projection_uv, batches[7].images.projection_uv)


def test_evaluation_reads_images_as_they_are_or_says_why_not(domain, make_network):
    plan = make_network(domain).plan
    batch = evaluation_batch(domain, plan, 1)
    assert domain.features.rows[-1] == [3 * 2 + 2, 3 * 3 + 2]
    np.testing.assert_array_equal(batch.images.projection_uv, domain.load(1).projection_uv)
    source = Views(domain.features, ("hflip",))
    with pytest.raises(RunError, match=r"extract\.views"):
        identity_views(domain.load(1), source)


def test_with_one_view_batches_are_what_they_were(make_domain, make_network):
    from xd3d.stages.train.settings import AugmentSettings

    domain = make_domain(frames=4, points=100)
    plan = make_network(domain).plan
    batch = training_batch(domain, plan, AugmentSettings(), batch_size=2, seed=1, step=0)
    uv = np.concatenate([domain.load(p).projection_uv for p in range(4)])
    assert np.isin(batch.images.projection_uv.numpy()[:, 0], uv[:, 0]).all()


@pytest.fixture
def cached_domain(make_domain, tmp_path):
    """Six frames of two cameras whose features lie in a cache."""
    domain = make_domain(frames=6, cameras=2, points=100)
    source = domain.features
    with CacheWriter.open(
        tmp_path / "cache",
        taps=list(source.taps.values()),
        agents=source.agents,
        grid=source.grid,
        image_keys=[str(key) for key in domain.index.images.key],
        images_per_frame=2,
        fingerprint={},
        shard_bytes=50_000,
    ) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, source.read(shard.rows), {})
    return replace(domain, features=FeatureReader(tmp_path / "cache"))


def tensors_of(batch):
    images = batch.images
    own = {name: getattr(images, name) for name in ("geometry", "assignment", "membership")}
    return {**images.maps, **{f"agents/{tap}": values for tap, values in images.agents.items()}, **own}


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_in_reused_memory_equal_fresh_ones_for_as_long_as_they_are_in_use(cached_domain, make_network, threads):
    plan = make_network(cached_domain).plan
    assert plan.memberships
    readers = feature_readers(
        cached_domain.features, ring_slots(threads), taps=plan.taps, memberships=plan.memberships, pinned=False
    )
    options = {"batch_size": 2, "seed": 4}
    batches = map_ahead(
        lambda step, slot: training_batch(
            cached_domain, plan, AugmentSettings(), step=step, read=readers[slot], **options
        ),
        range(24),
        threads,
    )
    addresses = set()
    for step, (batch, _) in enumerate(batches):
        time.sleep(0.01)  # a step of training, in which the threads fill every other slot
        fresh = tensors_of(training_batch(cached_domain, plan, AugmentSettings(), step=step, **options))
        for name, values in tensors_of(batch).items():
            assert torch.equal(values, fresh[name]), f"{name} of step {step} changed under its consumer"
        addresses.add(batch.images.maps["up2"].data_ptr())
    assert len(addresses) == ring_slots(threads), "the memory of the ring must be used again"


def test_a_cache_without_memberships_is_refused_with_the_settings_that_read_them(make_domain, small_fusion, paper):
    features = make_domain(frames=1).features
    located = small_fusion(**paper, locate_queries=True)
    with pytest.raises(CacheError, match=r"locate_queries=true.*xd3d cache upgrade.*fusion\.locate_queries=false"):
        check_memberships(located, SimpleNamespace(grid=None))
    check_memberships(small_fusion(**paper), SimpleNamespace(grid=None))
    check_memberships(located, features)


def test_memberships_are_read_where_they_are_wanted(make_domain, tmp_path):
    domain = make_domain(frames=2, points=10)
    source, grid = domain.features, domain.features.taps["up2"]
    drawn = np.random.default_rng(2).integers(0, source.agents, (2, 2, 4, grid.height, grid.width), dtype=np.uint8)
    features = replace(source.read([0, 1]), assignment=drawn[0], membership=drawn[1])
    with CacheWriter.open(
        tmp_path / "cache",
        taps=list(source.taps.values()),
        agents=source.agents,
        image_keys=["a", "b"],
        images_per_frame=1,
        fingerprint={},
        grid=grid,
    ) as writer:
        write_shard(writer, writer.layout.shard(0), features, {})
    cached = replace(domain, features=FeatureReader(tmp_path / "cache"))
    (with_them,), (without,) = (
        feature_readers(cached.features, 1, taps=("up1",), memberships=wanted, pinned=False) for wanted in (True, False)
    )
    assert cached.features.grid == grid
    read = with_them([1, 0])
    np.testing.assert_array_equal(read.assignment, drawn[0, ::-1])
    np.testing.assert_array_equal(read.membership, drawn[1, ::-1])
    assert without([1]).assignment is None


def test_only_the_taps_of_the_network_are_read(cached_domain, make_network, tmp_path):
    plan = make_network(cached_domain, taps=("up2",)).plan
    for file in [*tmp_path.glob("cache/features/up1/c/**/0"), *tmp_path.glob("cache/agents/up1/c/**/0")]:
        if file.is_file():
            file.unlink()
    (read,) = feature_readers(cached_domain.features, 1, taps=plan.taps, pinned=False)
    batch = training_batch(cached_domain, plan, AugmentSettings(), batch_size=2, seed=4, step=0, read=read)
    assert set(batch.images.maps) == set(batch.images.agents) == {"up2"}


def test_predictions_do_not_depend_on_the_threads_that_fill_the_ring(cached_domain, make_network):
    network = make_network(cached_domain)
    fresh = list(predict_frames(network, cached_domain, workers=0))
    for one, other in zip(fresh, predict_frames(network, cached_domain, workers=3), strict=True):
        np.testing.assert_array_equal(one.probabilities_3d, other.probabilities_3d)
        np.testing.assert_array_equal(one.probabilities_2d, other.probabilities_2d)


def test_a_source_that_makes_new_arrays_is_read_as_it_is(make_domain):
    source = make_domain(frames=2).features
    assert feature_readers(source, 3, taps=("up1",), pinned=False) == [source.read] * 3
    assert feature_readers(None, 2, taps=(), pinned=False) == [None, None]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_memory_for_a_gpu_is_pinned(cached_domain):
    (read,) = feature_readers(cached_domain.features, 1, taps=("up1", "rgb"), pinned=True)
    features = read([0, 3])
    for values in (*features.maps.values(), *features.agents.values(), features.geometry):
        assert torch.from_numpy(values).is_pinned()
