"""A precision is chosen by what the machine is fast at, and a slow one is announced with its price."""

import logging

import pytest
import torch
from xd3d.stages.extract import precision
from xd3d.stages.extract.diffusion_backbone import DiffusionBackbone
from xd3d.stages.extract.models import resolve_model
from xd3d.stages.extract.precision import has_native_support, precisions, resolve_dtype, warn_if_slow

CPU = torch.device("cpu")


@pytest.fixture
def large(real_sd_configs):
    return resolve_model(str(real_sd_configs / "sd21-base"), weights="random")


@pytest.mark.parametrize(("units", "first"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_bfloat16_for_full_size_models_where_there_are_units(settings, large, monkeypatch, units, first):
    monkeypatch.setattr(precision, "has_native_support", lambda *_: units)
    assert resolve_dtype(settings(dtype="auto"), large) == first
    assert set(precisions(settings(dtype="auto"), large)) == {"bfloat16", "float32"}


def test_a_gpu_that_is_asked_for_and_is_on_another_machine_is_not_taken_for_this_cpu(settings, large, monkeypatch):
    monkeypatch.setattr(precision, "has_native_support", lambda *_: False)
    assert resolve_dtype(settings(dtype="auto", device="cpu"), large) == "float32"
    assert resolve_dtype(settings(dtype="auto", device="cuda"), large) == "bfloat16"


def test_small_models_and_set_precisions_are_the_same_on_any_machine(settings, large, tiny_model):
    assert precisions(settings(dtype="auto"), resolve_model(str(tiny_model))) == ("float32",)
    for dtype in ("float32", "bfloat16", "float16"):
        assert precisions(settings(dtype=dtype), large) == (dtype,)


def test_units_are_found_where_products_are_fast():
    """What the flags say must agree with a stopwatch: without units these products may take a hundred times as long."""
    assert has_native_support("float32", CPU)
    factor = precision._product_seconds("bfloat16", CPU) / precision._product_seconds("float32", CPU)
    assert factor < 10 or not has_native_support("bfloat16", CPU)


def test_a_precision_without_units_is_announced_with_its_factor(settings, tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(precision, "has_native_support", lambda dtype, _: dtype == "float32")
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype, _: 42.0 if dtype == "bfloat16" else 1.0)
    with caplog.at_level(logging.WARNING, "xd3d"):
        warn_if_slow("float32", CPU)
        assert not caplog.records
        DiffusionBackbone(model=resolve_model(str(tiny_model)), settings=settings(dtype="bfloat16"), device=CPU)
    assert "no units for bfloat16: matrix products take about 42 times as long" in caplog.text
    assert "extract.dtype" in caplog.text


def test_a_config_may_give_a_width_for_each_stage(settings, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "cvt", "embed_dim": [64, 192, 384], "depth": [1, 2, 10]}')
    (tmp_path / "preprocessor_config.json").write_text("{}")
    model = resolve_model(str(tmp_path), weights="random")
    assert precisions(settings(dtype="auto"), model) == ("float32",)
