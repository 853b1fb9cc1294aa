"""Packed layers give the stock features to within rounding, the same bits each time, and fall back by themselves.

They are made for half precision; float32 shows here what a machine without units for it can show.
"""

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn
from xd3d.stages.extract import packing
from xd3d.stages.extract.diffusion_backbone import DiffusionBackbone
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.packing import pack_layers

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def load(settings, **changes):
    chosen = settings(**changes)
    return DiffusionBackbone(model=settings_model(chosen), settings=chosen, device=torch.device("cpu"))


def images(count):
    return torch.randint(0, 256, (count, 3, 100, 180), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def packed_share(backbone, kind):
    layers = [m for part in (backbone.vae, backbone.unet) for m in part.modules() if type(m) is kind]
    replaced = [vars(m)["forward"] for m in layers if "forward" in vars(m)]
    return sum(getattr(forward, "func", None) is not packing._first for forward in replaced) / len(layers)


def pack(backbone):
    pack_layers(backbone.vae, in_place=True)
    pack_layers(backbone.unet, [tap.module for tap in backbone.taps])


def test_packed_features_are_the_stock_ones_within_rounding_and_stay_the_same(settings):
    backbone = load(settings, taps=("mid", "up0.0", "up1:residual", "up2", "up3"))
    stock = backbone(images(1), ["a"])
    pack(backbone)
    first, second = backbone(images(1), ["a"]), backbone(images(1), ["a"])
    for kind in (nn.Conv2d, nn.Linear, ResnetBlock2D, GEGLU, Attention):
        assert packed_share(backbone, kind) > 0.8, kind
    assert packed_share(backbone, Downsample2D) == 0.5  # the autoencoder's; those of the UNet pad both sides
    for name, values in stock.items():
        torch.testing.assert_close(first[name], values, rtol=1e-3, atol=1e-4)
        assert torch.equal(first[name], second[name])
    assert backbone(images(3), ["a", "b", "c"])["up3"].shape[0] == 3


def test_a_branch_that_is_read_alone_is_not_joined_with_its_shortcut(settings):
    backbone = load(settings, taps=("up1:residual",))
    pack(backbone)
    backbone(images(1), ["a"])
    assert "forward" not in vars(backbone.unet.up_blocks[1].resnets[-1])


def test_joined_resnets_leave_the_maps_alone_that_the_unet_reads_again(settings):
    backbone = load(settings)
    pack(backbone)
    block = backbone.unet.down_blocks[0].resnets[0]  # without a convolution in its shortcut
    seen = []
    block.register_forward_pre_hook(lambda _module, inputs: seen.append((inputs[0], inputs[0].clone())))
    for _ in range(2):
        backbone(images(1), ["a"])
    assert block.conv_shortcut is None
    assert all(torch.equal(now, then) for now, then in seen)


@pytest.mark.parametrize("linear", [True, False])
def test_transformers_give_the_stock_maps_with_either_projection(linear):
    torch.manual_seed(0)
    block = Transformer2DModel(
        2, 8, in_channels=16, norm_num_groups=4, cross_attention_dim=12, use_linear_projection=linear
    )
    maps, text = torch.randn(2, 16, 6, 5).contiguous(memory_format=torch.channels_last), torch.randn(2, 7, 12)
    with torch.inference_mode():
        stock = block.eval()(maps, encoder_hidden_states=text, return_dict=False)[0]
        pack_layers(block)
        for _ in range(2):
            found = block(maps, encoder_hidden_states=text, return_dict=False)[0]
            torch.testing.assert_close(found, stock, rtol=1e-4, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def without_tiles(monkeypatch):
    """A processor with half-precision products and no tiles, where large maps get attention by plain products."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.mark.parametrize("sharpness", [0.2, 1])
def test_attention_by_plain_products_stays_near_float32_when_scores_are_large(without_tiles, monkeypatch, sharpness):
    torch.manual_seed(0)
    exact = Attention(64, heads=2, dim_head=32).eval()
    exact.to_q.weight.data *= 5 * sharpness
    exact.to_k.weight.data *= 5
    layer = Attention(64, heads=2, dim_head=32).bfloat16().eval()
    layer.load_state_dict(exact.state_dict())
    exact.load_state_dict(layer.state_dict())
    cells = torch.randn(2, packing.MANY_CELLS + 77, 64).bfloat16()
    counted = []
    products = packing._attend_by_products
    monkeypatch.setattr(packing, "_attend_by_products", lambda *given: counted.append(products(*given)))
    with torch.inference_mode():
        expected, stock = exact(cells.float()), layer(cells).float()
        pack_layers(layer)
        errors = [(found - expected).norm() / expected.norm() for found in (stock, layer(cells), layer(cells))]
    assert errors[1] == errors[2] <= 1.4 * errors[0]
    assert len(counted) == 2 * len(cells) * exact.heads


def test_attention_within_a_map_gives_the_stock_map_of_either_kind(without_tiles):
    torch.manual_seed(0)
    layer = Attention(
        32,
        heads=1,
        dim_head=32,
        norm_num_groups=4,
        residual_connection=True,
        bias=True,
        _from_deprecated_attn_block=True,
    ).eval()
    maps = torch.randn(2, 32, 35, 31).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        stock = layer(maps)
        pack_layers(layer)
        for _ in range(2):
            found = layer(maps)
            torch.testing.assert_close(found, stock, rtol=1e-4, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("size", "output_size"), [((4, 5), None), ((5, 3), (10, 6)), ((4, 5), (7, 9))])
def test_an_upsampler_gives_the_stock_map_to_its_edges_and_at_odd_sizes(size, output_size):
    torch.manual_seed(0)
    block = Upsample2D(6, use_conv=True, out_channels=8).eval()
    maps = torch.randn(2, 6, *size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        stock = block(maps, output_size)
        pack_layers(block)
        for _ in range(2):
            found = block(maps, output_size)
            torch.testing.assert_close(found, stock, rtol=1e-4, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    folded = output_size in (None, (10, 6))
    assert isinstance(vars(block).get("forward"), packing.FoldedUpsampling) == folded


PACKS = (
    *("PackedConvolution", "PackedLinear", "PackedGeglu", "FixedTextAttention", "FoldedUpsampling", "FusedResnet"),
    *("_channels_last_output", "_channels_last_attention", "_padded_downsampling"),
)


def refuse(*_given, **_named):
    raise RuntimeError("no such kernel")


def make_refuse(patch, kind):
    made = getattr(packing, kind)
    patch.setattr(*((made, "__init__") if isinstance(made, type) else (packing, kind)), refuse)


def make_wrong(patch, kind):
    made = getattr(packing, kind)
    if isinstance(made, type):
        call = made.__call__
        patch.setattr(made, "__call__", lambda *given, **named: 2 * call(*given, **named))
    else:
        patch.setattr(
            packing, kind, lambda *given, **named: lambda *more, **rest: 2 * made(*given, **named)(*more, **rest)
        )


def test_what_cannot_be_packed_here_stays_as_it_is(settings, monkeypatch):
    backbone = load(settings)
    stock = backbone(images(1), ["a"])
    for kind in PACKS:
        make_refuse(monkeypatch, kind)
    pack(backbone)
    for _ in range(2):
        assert torch.equal(backbone(images(1), ["a"])["up2"], stock["up2"])
    assert [packed_share(backbone, kind) for kind in (nn.Conv2d, nn.Linear, ResnetBlock2D)] == [0, 0, 0]


@pytest.mark.parametrize("kind", PACKS)
def test_a_packed_layer_with_other_values_is_not_used(settings, monkeypatch, kind):
    found = []
    for spoil in (make_refuse, make_wrong):
        backbone = load(settings)
        with monkeypatch.context() as patch:
            spoil(patch, kind)
            pack(backbone)
            found.append([backbone(images(1), ["a"])["up2"] for _ in range(2)])
    for refused, wrong in zip(*found, strict=True):
        assert torch.equal(refused, wrong)
