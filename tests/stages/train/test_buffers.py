import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from xd3d.cache.reader import FeatureReader
from xd3d.cache.writer import CacheWriter
from xd3d.prefetch import map_ahead, ring_slots
from xd3d.stages.predict.inference import predict_frames
from xd3d.stages.train.buffers import domain_of_each_slot
from xd3d.stages.train.loader import training_batch
from xd3d.stages.train.settings import AugmentSettings

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


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
            writer.write_shard(shard, source.read(shard.rows), {})
    return replace(domain, features=FeatureReader(tmp_path / "cache"))


def tensors_of(batch):
    images = batch.images
    own = {name: getattr(images, name) for name in ("geometry", "assignment", "membership")}
    return {**images.maps, **{f"agents/{tap}": values for tap, values in images.agents.items()}, **own}


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_in_reused_memory_equal_fresh_ones_for_as_long_as_they_are_in_use(cached_domain, make_network, threads):
    plan = make_network(cached_domain).plan
    assert plan.memberships
    memory = {"taps": plan.taps, "memberships": plan.memberships, "device": CPU}
    slots = domain_of_each_slot(cached_domain, ring_slots(threads), **memory)
    options = {"batch_size": 2, "seed": 4}
    batches = map_ahead(
        lambda step, slot: training_batch(slots[slot], plan, AugmentSettings(), step=step, **options),
        range(24),
        threads,
    )
    places = set()
    for step, (batch, _) in enumerate(batches):
        time.sleep(0.01)  # a step of training, in which the threads fill every other slot
        fresh = tensors_of(training_batch(cached_domain, plan, AugmentSettings(), step=step, **options))
        for name, values in tensors_of(batch).items():
            assert torch.equal(values, fresh[name]), f"{name} of step {step} changed under its consumer"
        places.add(batch.images.maps["up2"].data_ptr())
    assert len(places) == ring_slots(threads), "the memory of the ring must be used again"


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
        writer.write_shard(writer.layout.shard(0), features, {})
    cached = replace(domain, features=FeatureReader(tmp_path / "cache"))
    with_them, without = (
        domain_of_each_slot(cached, 1, taps=("up1",), device=CPU, memberships=wanted)[0].features
        for wanted in (True, False)
    )
    assert with_them.grid == grid
    read = with_them.read([1, 0])
    np.testing.assert_array_equal(read.assignment, drawn[0, ::-1])
    np.testing.assert_array_equal(read.membership, drawn[1, ::-1])
    assert without.read([1]).assignment is None


def test_only_the_taps_of_the_network_are_read(cached_domain, make_network, tmp_path):
    plan = make_network(cached_domain, taps=("up2",)).plan
    for file in [*tmp_path.glob("cache/features/up1/c/**/0"), *tmp_path.glob("cache/agents/up1/c/**/0")]:
        if file.is_file():
            file.unlink()
    slots = domain_of_each_slot(cached_domain, 1, taps=plan.taps, device=CPU)
    batch = training_batch(slots[0], plan, AugmentSettings(), batch_size=2, seed=4, step=0)
    assert set(batch.images.maps) == set(batch.images.agents) == {"up2"}


def test_predictions_do_not_depend_on_the_threads_that_fill_the_ring(cached_domain, make_network):
    network = make_network(cached_domain)
    fresh = list(predict_frames(network, cached_domain, workers=0))
    for one, other in zip(fresh, predict_frames(network, cached_domain, workers=3), strict=True):
        np.testing.assert_array_equal(one.probabilities_3d, other.probabilities_3d)
        np.testing.assert_array_equal(one.probabilities_2d, other.probabilities_2d)


def test_a_source_that_makes_new_arrays_is_shared_as_it_is(make_domain):
    domain = make_domain(frames=2)
    assert domain_of_each_slot(domain, 3, taps=("up1",), device=CPU) == [domain] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_memory_for_a_gpu_is_pinned(cached_domain):
    slot = domain_of_each_slot(cached_domain, 1, taps=("up1", "rgb"), device=torch.device("cuda"))[0]
    features = slot.features.read([0, 3])
    for values in (*features.maps.values(), *features.agents.values(), features.geometry):
        assert torch.from_numpy(values).is_pinned()
