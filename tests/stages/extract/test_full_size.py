"""Full-size Stable Diffusion, built from its published configs with seeded random weights, on a real image."""

import numpy as np
import pytest
import torch
from xd3d.cache.reader import FeatureReader
from xd3d.stages.datasets.nuscenes import build_index
from xd3d.stages.extract.diffusion_backbone import DiffusionBackbone
from xd3d.stages.extract.job import extract_features
from xd3d.stages.extract.models import resolve_model
from xd3d.stages.extract.precision import has_native_support
from xd3d.stages.extract.settings import ExtractSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def full_size(configs, name="sd21-base", **changes):
    return ExtractSettings(model=str(configs / name), weights="random", device="cpu", batch_size=1, **changes)


def test_a_real_front_image_goes_through_full_size_stable_diffusion(real_sd_configs, real_nuscenes, tmp_path):
    index = build_index(real_nuscenes, version="v1.0-mini")
    summary = extract_features(index, full_size(real_sd_configs), tmp_path / "cache")
    assert (summary.images, summary.done) == (1, 1)
    reader = FeatureReader(tmp_path / "cache")
    assert reader.fingerprint["dtype"] == (
        "bfloat16" if has_native_support("bfloat16", torch.device("cpu")) else "float32"
    )
    sizes = {name: (spec.channels, spec.height, spec.width) for name, spec in reader.taps.items()}
    assert sizes == {
        "up0": (1280, 4, 7),
        "up1": (1280, 8, 13),
        "up2": (640, 15, 25),
        "up3": (320, 29, 50),
        "rgb": (3, 57, 100),
    }
    features = reader.read([0])
    assert all(np.isfinite(values).all() and values.astype(np.float32).std() > 0.1 for values in features.maps.values())
    np.testing.assert_allclose(features.geometry[0, :, 0].sum(), 1, atol=1e-3)


@pytest.mark.parametrize(("name", "width", "prediction"), [("sd14", 768, "epsilon"), ("sd21-base", 1024, "epsilon")])
def test_published_configs_give_the_published_sizes(real_sd_configs, name, width, prediction):
    settings = full_size(real_sd_configs, name, taps=("mid", "up1"), image_size=(64, 64))
    model = resolve_model(settings.model, weights="random")
    backbone = DiffusionBackbone(model=model, settings=settings, device=torch.device("cpu"))
    parameters = sum(values.numel() for values in backbone.unet.parameters())
    assert parameters == {"sd14": 859_520_964, "sd21-base": 865_910_724}[name]
    assert (backbone.vae_factor, backbone.vae.config.scaling_factor) == (8, 0.18215)
    assert (backbone.unet.config.cross_attention_dim, backbone.prediction_type) == (width, prediction)
    maps = backbone(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), ["black"])
    assert {name: tuple(values.shape) for name, values in maps.items()} == {
        "mid": (1, 1280, 1, 1),
        "up1": (1, 1280, 2, 2),
    }
