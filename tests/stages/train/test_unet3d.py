"""The sparse U-Net against a dense twin, and the interface that the fusion builds on."""

import pytest
import torch
from torch.nn import functional
from xd3d.stages.train.sparse import KernelMaps, SparseTensor, make_backend
from xd3d.stages.train.unet3d import SpUNet

SHAPE = (19, 14, 9)


def cloud(counts, channels=2, seed=0, dtype=torch.float64):
    """One sample for each count: distinct random voxels of SHAPE, sorted by sample."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cartesian_prod(*(torch.arange(extent) for extent in SHAPE))
    parts = []
    for sample, count in enumerate(counts):
        chosen = cells[torch.randperm(len(cells), generator=generator)[:count]]
        parts.append(functional.pad(chosen, (1, 0), value=sample))
    indices = torch.cat(parts).int()
    features = torch.randn(len(indices), channels, dtype=dtype, generator=generator).requires_grad_()
    return SparseTensor.create(features=features, maps=KernelMaps(indices, SHAPE, len(counts)))


def unet(preset="slim", channels=2):
    torch.manual_seed(7)
    return SpUNet(in_channels=channels, preset=preset, backend=make_backend("torch", "cpu")).double()


class DenseTwin:
    """The same network on a full grid, wired by hand: empty cells are held at zero and left out of every statistic."""

    def __init__(self, net, x):
        self.net, self.state = net, dict(net.named_parameters())
        sample, *place = x.indices.long().unbind(1)
        extents = [-(-extent // 16) * 16 for extent in SHAPE]
        self.rows = (sample, *place)
        mask = torch.zeros(x.batch_size, 1, *extents, dtype=x.features.dtype)
        mask[sample, 0, place[0], place[1], place[2]] = 1
        self.masks = [mask]
        for _ in range(4):
            self.masks.append(functional.max_pool3d(self.masks[-1], 2))
        volume = x.features.new_zeros(x.batch_size, *extents, x.features.shape[1])
        self.volume = volume.index_put(self.rows, x.features).permute(0, 4, 1, 2, 3)

    def weight(self, name):
        return self.state[f"{name}.weight"].permute(0, 4, 1, 2, 3)

    def norm(self, volume, level, name):
        mask = self.masks[level]
        count = mask.sum()
        mean = (volume * mask).sum((0, 2, 3, 4), keepdim=True) / count
        variance = ((volume - mean).square() * mask).sum((0, 2, 3, 4), keepdim=True) / count
        gain, shift = (self.state[f"{name}.{part}"][:, None, None, None] for part in ("weight", "bias"))
        return ((volume - mean) / (variance + 1e-3).sqrt() * gain + shift) * mask

    def submanifold(self, volume, level, name):
        weight = self.weight(name)
        return functional.conv3d(volume, weight, padding=weight.shape[-1] // 2) * self.masks[level]

    def block(self, volume, level, name):
        branch = self.submanifold(volume, level, f"{name}.first.conv")
        branch = self.norm(branch, level, f"{name}.first.norm").relu()
        branch = self.norm(self.submanifold(branch, level, f"{name}.second"), level, f"{name}.norm")
        if f"{name}.shortcut.0.weight" in self.state:
            linear = self.state[f"{name}.shortcut.0.weight"][..., None, None, None]
            volume = self.norm(functional.conv3d(volume, linear), level, f"{name}.shortcut.1")
        return (branch + volume).relu()

    def __call__(self):
        x = self.norm(self.submanifold(self.volume, 0, "stem.conv"), 0, "stem.norm").relu()
        skips = [x]
        for stage in range(4):
            x = functional.conv3d(x, self.weight(f"down.{stage}.conv"), stride=2)
            x = self.norm(x, stage + 1, f"down.{stage}.norm").relu()
            for number in range(len(self.net.encoder[stage])):
                x = self.block(x, stage + 1, f"encoder.{stage}.{number}")
            skips.append(x)
        for stage in range(4):
            level = 3 - stage
            weight = self.state[f"up.{stage}.conv.weight"].permute(4, 0, 1, 2, 3)
            x = functional.conv_transpose3d(x, weight, stride=2) * self.masks[level]
            x = torch.cat([self.norm(x, level, f"up.{stage}.norm").relu(), skips[level]], 1)
            for number in range(len(self.net.decoder[stage])):
                x = self.block(x, level, f"decoder.{stage}.{number}")
        return x.permute(0, 2, 3, 4, 1)[self.rows]


def test_slim_network_equals_its_dense_twin_forwards_and_backwards():
    net, x = unet(), cloud([150, 90])
    sparse, dense = net(x).features, DenseTwin(net, x)()
    torch.testing.assert_close(sparse, dense, rtol=1e-9, atol=1e-10)
    pull = torch.randn(sparse.shape, dtype=sparse.dtype, generator=torch.Generator().manual_seed(1))
    names = ["input", *(name for name, _ in net.named_parameters())]
    wanted = [x.features, *net.parameters()]
    actual, expected = (torch.autograd.grad((out * pull).sum(), wanted) for out in (sparse, dense))
    for name, ours, theirs in zip(names, actual, expected, strict=True):
        scale = theirs.abs().max()
        assert scale > 0, name
        assert (ours - theirs).abs().max() <= 1e-8 * scale, name


@pytest.mark.parametrize(
    ("preset", "stem", "encoder", "decoder", "blocks"),
    [
        ("full", 32, (32, 64, 128, 256), (256, 128, 96, 64), ([2, 3, 4, 6], [2, 2, 2, 2])),
        ("slim", 16, (16, 32, 64, 128), (128, 64, 48, 32), ([1, 1, 1, 1], [1, 1, 1, 1])),
    ],
)
def test_presets_have_the_published_widths_and_depths(preset, stem, encoder, decoder, blocks):
    net, x = unet(preset), cloud([60])
    stages = net.encode(x)
    assert [stage.features.shape[1] for stage in stages] == [stem, *encoder]
    assert [stage.level for stage in stages] == [0, 1, 2, 3, 4]
    assert (net.encoder_channels, net.decoder_channels, net.out_channels) == (encoder, decoder, decoder[-1])
    assert ([len(each) for each in net.encoder], [len(each) for each in net.decoder]) == blocks
    y = net.decode(stages)
    assert y.features.shape == (60, decoder[-1])
    assert torch.equal(y.indices, x.indices)
    assert {(norm.eps, norm.momentum) for norm in net.modules() if isinstance(norm, torch.nn.BatchNorm1d)} == {
        (1e-3, 0.01)
    }


def test_layernorm_has_no_statistics_and_each_sample_is_computed_alone_in_training_too():
    torch.manual_seed(7)
    net = SpUNet(in_channels=2, preset="slim", backend=make_backend("torch", "cpu"), norm="layer").double()
    assert not list(net.buffers())
    both, alone = cloud([60, 80]), cloud([60])
    both = both.replace(torch.cat([alone.features, both.features[60:]]))
    torch.testing.assert_close(net(both).features[:60], net(alone).features)
    torch.testing.assert_close(net.eval()(alone).features, net.train()(alone).features, rtol=0, atol=0)


def test_refine_sees_every_decoder_stage_and_replaces_its_features():
    net, x = unet().eval(), cloud([60])
    seen = []

    def double(stage, tensor):
        seen.append((stage, tensor.features.shape[1], tensor.level))
        return tensor.features * 2

    stages = net.encode(x)
    plain, refined = net.decode(stages), net.decode(stages, double)
    assert seen == [(0, 128, 3), (1, 64, 2), (2, 48, 1), (3, 32, 0)]
    assert not torch.allclose(plain.features, refined.features)
    kept = net.decode(stages, lambda _, tensor: tensor.features)
    assert torch.equal(kept.features, plain.features)
    only_last = net.decode(stages, lambda stage, tensor: tensor.features * (2 if stage == 3 else 1))
    assert torch.equal(only_last.features, 2 * plain.features)


def test_a_sample_does_not_depend_on_the_others_in_its_batch():
    net = unet().eval()
    batch = cloud([80, 50, 70])
    together = net(batch).features
    for sample in range(3):
        rows = batch.sample == sample
        indices = batch.indices[rows] * torch.tensor([0, 1, 1, 1], dtype=torch.int32)
        alone = SparseTensor.create(features=batch.features[rows], maps=KernelMaps(indices, SHAPE, 1))
        torch.testing.assert_close(net(alone).features, together[rows], rtol=1e-11, atol=1e-12)


def test_the_order_of_voxels_does_not_matter():
    net, x = unet().eval(), cloud([80])
    order = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    shuffled = SparseTensor.create(features=x.features[order], maps=KernelMaps(x.indices[order], SHAPE, 1))
    torch.testing.assert_close(net(shuffled).features, net(x).features[order], rtol=1e-11, atol=1e-12)
