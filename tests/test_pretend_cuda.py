"""Both stages on a CUDA device that is pretended: nothing lies on the wrong device, and little waits for it."""

import importlib.util
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from xd3d.prefetch import map_ahead
from xd3d.stages.extract.agents import AgentMaker
from xd3d.stages.extract.diffusion_backbone import DiffusionBackbone
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.settings import RGB, ExtractSettings
from xd3d.stages.predict.attention import attention_maps
from xd3d.stages.predict.inference import predict_frames
from xd3d.stages.train.device_transfer import prefetch
from xd3d.stages.train.network import Network, choose_taps
from xd3d.stages.train.optimise import Stepper
from xd3d.stages.train.settings import AugmentSettings, FusionSettings, ModelSettings, TrainSettings
from xd3d.stages.train.step_batch import StepMaker


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HERE = Path(__file__).parent
pretended, tiny_domains = load(HERE / "pretend_cuda.py"), load(HERE / "stages/tiny_domains.py")
SMALL = {"tokens": 6, "query_channels": 16, "rank": 3, "image_channels": 8}
PAPER = {"queries": "agents", "inject": "none", "context": "none", "decoupling": "loss"}
VARIANTS = {
    "3d-only": {"variant": "3d-only"},
    "image": {"variant": "image"},
    "full": {},
    "both": {"inject": "both", "context": "mlp", "lidar_stages": 0, "depth": "sparse"},
    "controls": {"inject": "xyz"},
    "located": {"queries": "agents", "head": "distil", "locate_queries": True},
    "voxels": {"queries": "voxels"},
    "paper": {**PAPER, "head": "refine"},
    "cells": {**PAPER, "keys": "features", "head": "distil"},
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    return tiny_domains.write_domain(tmp_path_factory.mktemp("data"), frames=2, cameras=2, points=100)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stage_two(domain, device, values, precision, traffic=None, change=None):
    """Losses of two steps with a target, what was predicted then, and the traffic of the second step and after it."""
    fusion = FusionSettings(**{**SMALL, **values})
    if not fusion.image:
        domain = replace(domain, features=None)
    settings = TrainSettings(
        steps=3, batch_size=2, precision=precision, workers=1, lam_trg=0.1 if fusion.image else 0.0
    )
    torch.manual_seed(3)
    network = Network(
        model=ModelSettings(preset="slim", backend="torch"),
        fusion=fusion,
        classes=domain.merge.classes,
        taps=choose_taps(fusion, domain.features.taps if fusion.image else {}),
        cameras=2,
        device=CPU,
    )
    network.to(device)
    assert network.device == device
    if change is not None:
        change(network)
    stepper = Stepper(network.train(), torch.ones(len(domain.merge.classes), device=device), settings)
    make = StepMaker(
        source=domain,
        target=domain.unlabelled() if fusion.image else None,
        plan=network.plan,
        augment=AugmentSettings(),
        settings=settings,
        device=device,
    )
    losses, seen = [], None
    with closing(map_ahead(make, range(3), 1)) as made, closing(prefetch(made, device)) as batches:
        for step in range(2):
            if traffic is not None:
                traffic.clear()
            losses.append(stepper.step(step, islice(batches, 1)).losses)
            if traffic is not None:
                seen = {name: getattr(traffic, name).copy() for name in ("mixed", "waits", "pinned", "pageable")}
    if traffic is not None:
        traffic.clear()
    found = list(predict_frames(network, domain, workers=0))
    assert traffic is None or not traffic.pageable
    if fusion.agent_tokens or fusion.interface:
        assert attention_maps(network, domain, 0) is not None
    return losses, found, seen


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("full", "float16"),
        *(
            pytest.param(name, precision, marks=pytest.mark.slow)
            for name, precision in (
                *((name, "float32") for name in VARIANTS),
                ("full", "bfloat16"),
                ("paper", "float16"),
            )
        ),
    ],
)
def test_a_step_and_predictions_mix_no_devices_and_hardly_wait(domain, name, precision):
    expected, predicted, _ = stage_two(domain, CPU, VARIANTS[name], precision)
    with pretended.pretend_cuda() as traffic:
        losses, found, seen = stage_two(domain, pretended.CUDA, VARIANTS[name], precision, traffic)
    assert losses == expected
    for ours, theirs in zip(found, predicted, strict=True):
        assert np.array_equal(ours.probabilities_3d, theirs.probabilities_3d)
        assert np.array_equal(ours.decided, theirs.decided)
    assert not seen["mixed"] + traffic.mixed
    assert seen["waits"].total() <= 8, seen["waits"]
    assert not seen["pageable"], seen["pageable"]
    assert seen["pinned"].total() <= 12, seen["pinned"]


def test_a_tensor_that_was_left_behind_is_found(domain):
    def leave_behind(network):
        network.image_statistics.squares = network.image_statistics.squares.held

    with pretended.pretend_cuda() as traffic:
        *_, seen = stage_two(domain, pretended.CUDA, VARIANTS["image"], "float32", traffic, change=leave_behind)
    assert any("image_statistics.py" in what for what in seen["mixed"] + traffic.mixed)


def features(device, options):
    """Maps, agents' vectors and geometry of two images by the bundled model."""
    settings = ExtractSettings(image_size=(90, 160), **options)
    backbone = DiffusionBackbone(model=settings_model(settings), settings=settings, device=device)
    agents = AgentMaker(settings=settings.agents, specs=backbone.specs, image_size=settings.image_size, device=device)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 90, 160)).astype(np.uint8)
    pictures = torch.from_numpy(pixels).to(device)
    with torch.no_grad():
        maps = backbone(pictures, ["first", "second"])
        made = agents({name: values for name, values in maps.items() if name != RGB}, pictures)
    found = {**maps, **{f"queries of {name}": each for name, each in made.queries.items()}, "geometry": made.geometry}
    return {name: values.cpu() for name, values in found.items()}


@pytest.mark.parametrize(
    "options",
    [{}, {"timestep": 100}, {"agents": {"seeds": "distinct", "assign": "rgb"}}, {"agents": {"seeds": "grid"}}],
    ids=str,
)
def test_stage_one_mixes_no_devices_and_gives_the_same_features(options, monkeypatch):
    monkeypatch.setattr("xd3d.stages.extract.diffusion_backbone.has_native_support", lambda dtype, device: True)
    expected = features(CPU, options)
    with pretended.pretend_cuda() as traffic:
        found = features(pretended.CUDA, options)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name].float(), values.float(), rtol=1e-3, atol=1e-3, msg=name)
    assert not traffic.mixed
