import pytest
import torch
from xd3d.cache.schema import TapSpec
from xd3d.stages.train.images import ImageBatch
from xd3d.stages.train.queries import HEADS, ImageQueries, QueryBlock, StageMerge, VoxelQueries
from xd3d.stages.train.ragged import Ragged
from xd3d.stages.train.sparse import KernelMaps, SparseTensor

SPEC = TapSpec(name="up1", channels=6, height=3, width=5, extent=(2.0, 4.5))


def naive_block(block, tokens, keys):
    """One sample, one head at a time, no masks."""
    queries = block.query(block.norm_tokens(tokens))
    key, value = block.key(keys), block.value(keys)
    width = tokens.shape[1] // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        attention = torch.softmax(queries[:, part] @ key[:, part].T / width**0.5, -1)
        heads.append(attention @ value[:, part])
    x = tokens + block.out(torch.cat(heads, -1))
    return x + block.mlp(block.norm_mlp(x))


def image_batch(views, sample, agents=4):
    torch.manual_seed(1)
    return ImageBatch(
        specs={"up1": SPEC},
        maps={"up1": torch.randn(views, 6, 3, 5)},
        agents={"up1": torch.randn(views, agents, 6)},
        geometry=torch.rand(views, agents, 5),
        sample=torch.tensor(sample),
        camera=torch.arange(views) % 2,
        projection_point=torch.zeros(0, dtype=torch.int64),
        projection_view=torch.zeros(0, dtype=torch.int64),
        projection_uv=torch.zeros(0, 2),
        view_counts=torch.zeros(0, dtype=torch.int64),
        layout=Ragged.of(torch.tensor(sample), max(sample) + 1),
    )


def image_queries(**options):
    torch.manual_seed(2)
    values = {"tap_channels": {"up1": 6}, "tokens": 5, "channels": 16, "cameras": 2, "from_agents": True}
    return ImageQueries(**{**values, "drop_path": 0.0, **options})


def test_ragged_attention_equals_a_loop_over_samples_forward_and_backward():
    torch.manual_seed(0)
    block = QueryBlock(channels=16, drop_path=0.0).double()
    sample = torch.tensor([0, 2, 2, 0, 2, 2, 0])
    rows = torch.randn(7, 16, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(5, 16, dtype=torch.float64)
    layout = Ragged.of(sample, 3)
    found = block(tokens, layout.pad(rows), layout.mask)
    (gradient,) = torch.autograd.grad(found[[0, 2]].square().sum(), rows)
    loop = torch.stack([naive_block(block, tokens, rows[sample == each]) for each in (0, 2)])
    (expected,) = torch.autograd.grad(loop.square().sum(), rows)
    torch.testing.assert_close(found[[0, 2]], loop)
    torch.testing.assert_close(gradient, expected)
    assert torch.isfinite(found[1]).all(), "a sample without keys must stay finite"


def voxels(counts, channels):
    """A stage of the encoder: so many voxels a sample, none of them sorted by sample."""
    sample = torch.tensor([sample for sample, count in enumerate(counts) for _ in range(count)])
    sample = sample[torch.randperm(len(sample))]
    indices = torch.stack([sample, torch.arange(len(sample)), *torch.zeros(2, len(sample), dtype=torch.int64)], 1)
    return SparseTensor.create(
        features=torch.randn(len(sample), channels, dtype=torch.float64).requires_grad_(),
        maps=KernelMaps(indices.int(), (32, 4, 4), len(counts)),
    )


def test_3d_queries_equal_a_loop_over_samples_and_stages_forward_and_backward():
    torch.manual_seed(0)
    queries = VoxelQueries(stage_channels=[3, 5], tokens=4, channels=16, drop_path=0.0).double()
    stages = [voxels([7, 1, 12], 3), voxels([3, 1, 5], 5)]
    features = [stage.features for stage in stages]
    found = queries(stages)
    gradients = torch.autograd.grad(found.square().sum(), features)
    loop = []
    for sample in range(3):
        parts = []
        for place, stage in enumerate(stages):
            keys = queries.norm_keys[place](queries.lift[place](features[place][stage.sample == sample]))
            parts.append(naive_block(queries.blocks[place], queries.tokens[place], keys))
        loop.append(queries.merge([part.unsqueeze(0) for part in parts])[0])
    loop = torch.stack(loop)
    torch.testing.assert_close(found, loop)
    torch.testing.assert_close(gradients, torch.autograd.grad(loop.square().sum(), features))


def test_merge_is_max_mean_and_last_in_this_order():
    torch.manual_seed(0)
    merge = StageMerge(channels=8)
    stages = [torch.randn(2, 3, 8) for _ in range(4)]
    t = torch.stack([merge.transform(merge.norm(stage)) for stage in stages])
    expected = merge.merge(torch.cat([t.max(0).values, t.mean(0), t[-1]], -1))
    torch.testing.assert_close(merge(stages), expected)


def test_each_sample_has_queries_of_its_own_whatever_its_number_of_views():
    queries = image_queries()
    both = queries(image_batch(3, [0, 0, 1]))
    assert [part.shape for part in both] == [(2, 5, 16), (2, 5, 16)]
    images = image_batch(3, [0, 0, 1])
    images.agents["up1"][2] += 1
    changed = queries(images)
    for before, after in zip(both, changed, strict=True):
        assert torch.equal(before[0], after[0])
        assert not torch.allclose(before[1], after[1])


def test_the_order_of_agents_does_not_matter_and_their_geometry_does():
    queries = image_queries()
    images = image_batch(1, [0])
    semantic, _ = queries(images)
    turned = image_batch(1, [0])
    turned.agents["up1"] = images.agents["up1"].flip(1)
    with_its_geometry = type(images)(**{**vars(turned), "geometry": images.geometry.flip(1)})
    torch.testing.assert_close(queries(with_its_geometry)[0], semantic, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(queries(turned)[0], semantic)


def test_cameras_are_distinguished():
    queries = image_queries()
    images = image_batch(2, [0, 0])
    other = type(images)(**{**vars(images), "camera": images.camera.flip(0)})
    assert not torch.allclose(queries(images)[0], queries(other)[0])
    assert image_queries(cameras=1).camera is None


@pytest.mark.parametrize("cell", [(2, 0), (1, 4)])
def test_dense_keys_are_the_cells_on_the_image(cell):
    """Row 2 is padding; column 4 lies half on the image, and so counts."""
    queries = image_queries(from_agents=False)
    images = image_batch(2, [0, 1])
    semantic, _ = queries(images)
    images.maps["up1"][0, :, cell[0], cell[1]] += 5
    changed, _ = queries(images)
    assert torch.equal(changed[0], semantic[0]) == (cell[0] == 2)
    assert torch.equal(changed[1], semantic[1])


def test_drop_path_skips_whole_samples_in_training_and_none_in_evaluation():
    torch.manual_seed(0)
    block = QueryBlock(channels=16, drop_path=0.5)
    tokens, keys = torch.randn(3, 16), torch.randn(64, 4, 16)
    mask = torch.ones(64, 4, dtype=torch.bool)
    dropped = (block(tokens, keys, mask) == tokens).all(-1).all(-1)
    assert 4 <= dropped.sum() <= 30, "a quarter of the samples should lose both branches"
    assert not (block.eval()(tokens, keys, mask) == tokens).all(-1).any()
