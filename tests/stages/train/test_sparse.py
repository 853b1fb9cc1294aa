"""Both backends against dense convolution, against each other, and against what would silently go wrong."""

import sys
from importlib import import_module

import pytest
import torch
from torch.nn import functional
from xd3d.errors import BackendError
from xd3d.stages.train.sparse import (
    DownConv3d,
    InverseConv3d,
    KernelMaps,
    SparseTensor,
    SubMConv3d,
    build_kernel_maps,
    choose_backend,
    make_backend,
)
from xd3d.stages.train.unet3d import SpUNet

SHAPE = (7, 6, 9)
BATCH = 2


@pytest.fixture(scope="module", params=["torch", "spconv"])
def backend(request):
    return open_backend(request.param)


def open_backend(name):
    try:
        choose_backend(name, "cpu")
    except BackendError as error:
        pytest.skip(str(error))
    return make_backend(name, "cpu")


def random_indices(count, shape=SHAPE, seed=0):
    """Distinct voxels in no particular order."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cartesian_prod(torch.arange(BATCH), *(torch.arange(extent) for extent in shape))
    return cells[torch.randperm(len(cells), generator=generator)[:count]].int()


def sparse(indices, channels, shape=SHAPE, dtype=torch.float64, seed=1):
    features = torch.randn(len(indices), channels, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return SparseTensor.create(features=features.requires_grad_(), maps=KernelMaps(indices, shape, BATCH))


def dense(features, indices, shape):
    sample, x, y, z = indices.long().unbind(1)
    volume = features.new_zeros(BATCH, *shape, features.shape[1])
    return volume.index_put((sample, x, y, z), features).permute(0, 4, 1, 2, 3)


def at(volume, indices):
    sample, x, y, z = indices.long().unbind(1)
    return volume.permute(0, 2, 3, 4, 1)[sample, x, y, z]


def oirs(weight):
    """KRSC to the layout of torch's own convolutions."""
    return weight.permute(0, 4, 1, 2, 3)


def even(shape):
    return tuple(extent + extent % 2 for extent in shape)


def gradients(output, *inputs):
    pull = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * pull).sum(), inputs, retain_graph=True)


def assert_same(actual, expected):
    for each, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-10, atol=1e-11)


def module(kind, backend, **widths):
    torch.manual_seed(3)
    conv = kind(backend=backend, **widths).double()
    torch.nn.init.normal_(conv.weight)
    return conv


class TestAgainstDenseConvolution:
    @pytest.mark.parametrize("kernel", [3, 5])
    @pytest.mark.parametrize("count", [1, 40, 300])
    def test_submanifold(self, backend, kernel, count):
        x = sparse(random_indices(count), 4)
        conv = module(SubMConv3d, backend, in_channels=4, out_channels=5, kernel=kernel)
        y = conv(x)
        volume = functional.conv3d(dense(x.features, x.indices, SHAPE), oirs(conv.weight), padding=kernel // 2)
        expected = at(volume, x.indices)
        assert torch.equal(y.indices, x.indices)
        assert_same([y.features], [expected])
        assert_same(gradients(y.features, x.features, conv.weight), gradients(expected, x.features, conv.weight))

    @pytest.mark.parametrize("count", [1, 40, 300])
    def test_down_keeps_the_last_plane_of_odd_extents(self, backend, count):
        x = sparse(random_indices(count), 4)
        conv = module(DownConv3d, backend, in_channels=4, out_channels=5)
        y = conv(x)
        padded = even(SHAPE)
        volume = functional.conv3d(dense(x.features, x.indices, padded), oirs(conv.weight), stride=2)
        occupied = functional.max_pool3d(dense(torch.ones(count, 1), x.indices, padded), 2)[:, 0].nonzero()
        assert y.spatial_shape == (4, 3, 5)
        assert y.level == 1
        assert sorted(y.indices.tolist()) == occupied.tolist()
        expected = at(volume, y.indices)
        assert_same([y.features], [expected])
        assert_same(gradients(y.features, x.features, conv.weight), gradients(expected, x.features, conv.weight))

    def test_inverse_returns_to_the_voxels_and_order_of_the_input(self, backend):
        x = sparse(random_indices(60), 3)
        down = module(DownConv3d, backend, in_channels=3, out_channels=4)
        up = module(InverseConv3d, backend, in_channels=4, out_channels=5)
        middle = down(x)
        y = up(middle)
        volume = functional.conv_transpose3d(
            dense(middle.features, middle.indices, middle.spatial_shape),
            up.weight.permute(4, 0, 1, 2, 3),
            stride=2,
        )
        expected = at(volume, x.indices)
        assert torch.equal(y.indices, x.indices)
        assert (y.level, y.spatial_shape) == (0, SHAPE)
        assert_same([y.features], [expected])
        wanted = (x.features, down.weight, up.weight)
        assert_same(gradients(y.features, *wanted), gradients(expected, *wanted))


class TestBothBackendsAgree:
    """Parity in float64: outputs, gradients of inputs and of weights."""

    @pytest.mark.parametrize(
        ("preset", "count", "shape", "norm"),
        [
            ("slim", 250, SHAPE, "batch"),
            ("slim", 250, (40, 33, 21), "batch"),
            ("full", 60, (17, 16, 9), "batch"),
            ("slim", 80, SHAPE, "layer"),
        ],
    )
    def test_on_a_whole_network(self, preset, count, shape, norm):
        ours, theirs = (network(preset, open_backend(name), norm) for name in ("torch", "spconv"))
        theirs.load_state_dict(ours.state_dict())
        indices = random_indices(count, shape)
        results = []
        for net in (ours, theirs):
            x = sparse(indices, 2, shape)
            stages = net.encode(x)
            y = net.decode(stages)
            wanted = [x.features, *net.parameters()]
            results.append([y.features, *in_order(stages), *gradients(y.features, *wanted)])
        for actual, expected in zip(*results, strict=True):
            scale = expected.abs().max()
            assert (actual - expected).abs().max() <= 1e-9 * scale

    def test_a_cloud_can_be_encoded_twice(self, backend):
        net = network("slim", backend)
        x = sparse(random_indices(80), 2)
        first, second = net.encode(x), net.encode(x)
        assert torch.equal(net.decode(first).features, net.decode(second).features)

    def test_a_checkpoint_moves_between_backends_by_name_and_shape(self):
        ours, theirs = (network("slim", open_backend(name)).state_dict() for name in ("torch", "spconv"))
        assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in theirs.items()}
        assert ours["stem.conv.weight"].shape == (16, 5, 5, 5, 2)

    def test_a_seed_gives_one_initialisation_whatever_the_backend(self):
        ours, theirs = (network("slim", open_backend(name)).state_dict() for name in ("torch", "spconv"))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def network(preset, backend, norm="batch"):
    torch.manual_seed(5)
    return SpUNet(in_channels=2, preset=preset, backend=backend, norm=norm).double()


def in_order(stages):
    """Features of each stage with its voxels sorted, as backends may number coarse voxels differently."""
    return [stage.features[sorted_rows(stage.indices)] for stage in stages]


def sorted_rows(indices):
    return torch.tensor(sorted(range(len(indices)), key=indices.tolist().__getitem__))


class TestRefusals:
    def test_a_repeated_voxel(self):
        indices = torch.tensor([[0, 1, 2, 3], [1, 1, 2, 3], [0, 1, 2, 3]], dtype=torch.int32)
        with pytest.raises(BackendError, match="1 of 3 voxels"):
            sparse(indices, 2)

    @pytest.mark.parametrize("bad", [(0, 7, 0, 0), (0, 0, -1, 0), (0, 0, 0, 9), (2, 0, 0, 0), (-1, 0, 0, 0)])
    def test_a_voxel_out_of_range(self, bad):
        indices = torch.tensor([[0, 1, 2, 3], bad], dtype=torch.int32)
        with pytest.raises(BackendError, match=rf"1 of 2 voxels lie outside .* {list(bad)}".replace("[", r"\[")):
            sparse(indices, 2)

    def test_no_voxel_at_all(self):
        with pytest.raises(BackendError, match="at least one voxel"):
            sparse(torch.zeros(0, 4, dtype=torch.int32), 2)

    def test_indices_of_another_type(self):
        with pytest.raises(BackendError, match=r"int32.*found torch\.int64"):
            sparse(random_indices(5).long(), 2)

    def test_features_of_another_length(self):
        x = sparse(random_indices(5), 2)
        with pytest.raises(BackendError, match=r"4 rows.*fit 5 voxels"):
            x.replace(torch.zeros(4, 2))
        with pytest.raises(BackendError, match=r"4 rows.*fit 5 voxels"):
            SparseTensor.create(features=torch.zeros(4, 2), maps=KernelMaps(random_indices(5), SHAPE, BATCH))

    def test_another_width(self, backend):
        conv = module(SubMConv3d, backend, in_channels=4, out_channels=5)
        with pytest.raises(BackendError, match=r"4 input.*given 3"):
            conv(sparse(random_indices(5), 3))

    @pytest.mark.parametrize("kernel", [1, 2, 4])
    def test_a_kernel_that_submanifold_convolution_has_no_centre_for(self, backend, kernel):
        with pytest.raises(BackendError, match=f"found {kernel}"):
            SubMConv3d(in_channels=1, out_channels=1, kernel=kernel, backend=backend)

    def test_an_inverse_with_nothing_to_invert(self, backend):
        conv = module(InverseConv3d, backend, in_channels=4, out_channels=5)
        with pytest.raises(BackendError, match="no strided convolution"):
            conv(sparse(random_indices(5), 4))

    def test_bfloat16_on_spconv(self):
        conv = SubMConv3d(in_channels=4, out_channels=5, backend=open_backend("spconv")).bfloat16()
        with pytest.raises(BackendError, match="found bfloat16"):
            conv(sparse(random_indices(5), 4, dtype=torch.bfloat16))

    def test_a_space_whose_voxels_spconv_would_confuse_on_the_cpu(self):
        """Its 32-bit keys give (0, 0, 0, 0) and (0, 256, 0, 0) of a 4096 cube the same number."""
        conv = SubMConv3d(in_channels=4, out_channels=5, backend=open_backend("spconv")).double()
        with pytest.raises(BackendError, match="137438953472 cells"):
            conv(sparse(random_indices(5), 4, shape=(4096,) * 3))


class TestSpconvDetails:
    def test_indices_that_are_not_contiguous(self, backend):
        indices = random_indices(50)
        strided = indices.t().contiguous().t()
        assert not strided.is_contiguous()
        conv = module(SubMConv3d, backend, in_channels=2, out_channels=3)
        assert_same([conv(sparse(strided, 2)).features], [conv(sparse(indices, 2)).features])

    def test_features_and_gradients_that_are_not_contiguous(self, backend):
        indices = random_indices(50)
        conv = module(SubMConv3d, backend, in_channels=2, out_channels=3)
        x = sparse(indices, 2)
        y = conv(x.replace(x.features.t().contiguous().t())).features
        expected = conv(x).features
        pull = torch.randn(3, 50, dtype=torch.float64).t()
        assert_same(
            torch.autograd.grad(y, x.features, pull), torch.autograd.grad(expected, x.features, pull.contiguous())
        )

    def test_float32_is_close_to_float64(self, backend):
        indices = random_indices(200)
        conv = module(SubMConv3d, backend, in_channels=8, out_channels=8)
        exact = conv(sparse(indices, 8)).features
        single = conv.float()(sparse(indices, 8).map(torch.Tensor.float)).features
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("channels", [1, 7])
    def test_a_stem_in_float16_is_computed_in_float32_forwards_and_backwards(self, channels):
        """spconv has no float16 on the CPU at all, so what comes through was computed in float32."""
        indices, backend = random_indices(120), open_backend("spconv")
        half = module(SubMConv3d, backend, in_channels=channels, out_channels=16, kernel=5).half()
        single = module(SubMConv3d, make_backend("torch", "cpu"), in_channels=channels, out_channels=16, kernel=5)
        single.load_state_dict(half.state_dict())
        x = sparse(indices, channels, dtype=torch.float16)
        y, exact = half(x), single(x.map(torch.Tensor.double))
        assert y.features.dtype == torch.float16
        torch.testing.assert_close(y.features.double(), exact.features, rtol=1e-3, atol=1e-3)
        found = gradients(y.features, x.features, half.weight)
        expected = gradients(exact.features, x.features, single.weight)
        assert [each.dtype for each in found] == [torch.float16] * 2
        for each, other in zip(found, expected, strict=True):
            assert (each.double() - other.double()).abs().max() < 2e-3 * other.abs().max()

    def test_wider_layers_stay_in_float16(self):
        conv = module(SubMConv3d, open_backend("spconv"), in_channels=8, out_channels=16).half()
        with pytest.raises(BackendError, match="found float16"):
            conv(sparse(random_indices(5), 8, dtype=torch.float16))

    def test_a_failing_import_is_a_backend_error(self, monkeypatch):
        open_backend("spconv")
        monkeypatch.delitem(sys.modules, "xd3d.stages.train.sparse.spconv_backend")
        monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
        with pytest.raises(BackendError, match="does not import"):
            import_module("xd3d.stages.train.sparse.spconv_backend")


class TestTorchBackend:
    @pytest.mark.parametrize("kind", [SubMConv3d, DownConv3d])
    def test_gradients_by_finite_differences(self, kind):
        conv = module(kind, make_backend("torch", "cpu"), in_channels=2, out_channels=3)
        x = sparse(random_indices(12, (4, 3, 3)), 2, (4, 3, 3))

        def run(features, weight):
            return torch.func.functional_call(conv, {"weight": weight}, (x.replace(features),)).features

        assert torch.autograd.gradcheck(run, (x.features, conv.weight))

    def test_equal_input_gives_equal_bits_on_one_thread_and_on_two(self):
        shape = (30, 30, 10)
        x = sparse(random_indices(3000, shape), 16, shape, torch.float32)
        conv = SubMConv3d(in_channels=16, out_channels=24, backend=make_backend("torch", "cpu"))
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                y = conv(x).features
                results.append([y, *torch.autograd.grad(y.square().sum(), [x.features])])
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))

    def test_a_whole_step_gives_equal_bits_when_repeated(self):
        net, indices = network("slim", make_backend("torch", "cpu")).float(), random_indices(300)
        steps = []
        for _ in range(2):
            x = sparse(indices, 2, dtype=torch.float32)
            y = net(x).features
            steps.append([y, *torch.autograd.grad(y.square().sum(), [x.features, *net.parameters()])])
        assert all(torch.equal(one, two) for one, two in zip(*steps, strict=True))

    def test_maps_built_ahead_change_nothing_and_are_all_there(self, monkeypatch):
        indices = random_indices(150)
        net = SpUNet(in_channels=2, preset="slim", backend=make_backend("torch", "cpu")).double()
        x = sparse(indices, 2)
        expected = net(x).features
        maps = build_kernel_maps(indices, SHAPE, batch_size=BATCH)
        for name in ("submanifold_map", "strided_map"):
            monkeypatch.delattr(f"xd3d.stages.train.sparse.maps.{name}")  # a map built late would raise
        ahead = SparseTensor.create(features=x.features, maps=maps)
        assert torch.equal(net(ahead).features, expected)
