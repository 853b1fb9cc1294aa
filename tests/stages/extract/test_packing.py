"""Packed convolutions give the stock features to within rounding, the same bits each time, and fall back by themselves.

They are made for half precision; float32 shows here what a machine without units for it can show.
"""

import pytest
import torch
from torch import nn
from xd3d.stages.extract import packing
from xd3d.stages.extract.backbone import DiffusionBackbone
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.packing import pack_convolutions

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def load(settings, **changes):
    chosen = settings(**changes)
    return DiffusionBackbone(model=settings_model(chosen), settings=chosen, device=torch.device("cpu"))


def images(count):
    return torch.randint(0, 256, (count, 3, 100, 180), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def packed_share(backbone):
    convolutions = [m for part in (backbone.vae, backbone.unet) for m in part.modules() if type(m) is nn.Conv2d]
    return sum("_convolve" in str(vars(m).get("forward", "")) for m in convolutions) / len(convolutions)


def test_packed_features_are_the_stock_ones_within_rounding_and_stay_the_same(settings):
    backbone = load(settings, taps=("up1:residual", "up3"))
    stock = backbone(images(1), ["a"])
    pack_convolutions(backbone.vae)
    pack_convolutions(backbone.unet)
    first, second = backbone(images(1), ["a"]), backbone(images(1), ["a"])
    assert packed_share(backbone) > 0.8
    for name, values in stock.items():
        torch.testing.assert_close(first[name], values, rtol=1e-3, atol=1e-4)
        assert torch.equal(first[name], second[name])
    assert backbone(images(3), ["a", "b", "c"])["up3"].shape[0] == 3


def test_what_cannot_be_packed_here_stays_as_it_is(settings, monkeypatch):
    def refuses(*_):
        raise RuntimeError("no such kernel")

    backbone = load(settings)
    stock = backbone(images(1), ["a"])
    monkeypatch.setattr(packing, "_convolve", refuses)
    pack_convolutions(backbone.unet)
    for _ in range(2):
        assert torch.equal(backbone(images(1), ["a"])["up2"], stock["up2"])
    assert packed_share(backbone) == 0


def test_a_packed_convolution_with_other_values_is_not_used(settings, monkeypatch):
    convolve = packing._convolve
    backbone = load(settings)
    stock = backbone(images(1), ["a"])
    monkeypatch.setattr(packing, "_convolve", lambda *given: 2 * convolve(*given))
    pack_convolutions(backbone.unet)
    assert torch.equal(backbone(images(1), ["a"])["up2"], stock["up2"])
