"""Training from the cache and with the diffusion model in the loop are the same code and give the same losses.

The online source rounds or codes its features as the cache does, so on the CPU they agree to the last bit.
"""

import pytest
import torch
from xd3d.cache.layout import PROFILES
from xd3d.errors import CacheMismatchError
from xd3d.pipeline import jobs
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.sharing import Sharing
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.train.monitor import TIMING_KEYS
from xd3d.stages.train.network import Network, choose_taps
from xd3d.stages.train.run_log import read_log
from xd3d.stages.train.step_batch import StepMaker, step_losses

SMALL = (
    "extract.image_size=[48,80]",
    "extract.agents.count=16",
    "model.preset=slim",
    "extract.views=[identity,hflip]",
    "train.steps=4",
    "train.batch_size=2",
    "train.milestones=[3]",
    "train.validate_every=4",
)
PAPER = {"queries": "agents", "inject": "none", "context": "none", "decoupling": "loss"}
MODES = (
    {},
    {"inject": "both", "context": "mlp", "depth": "sparse"},
    {"queries": "agents", "head": "distil", "locate_queries": True},
    {"head": "refine", **PAPER},
    {"keys": "features", "head": "distil", "normalise": False, **PAPER},
    {"queries": "voxels", "inject": "none", "context": "none"},
    {"variant": "image", "taps": ("rgb", "up1")},
)


@pytest.mark.parametrize("profile", ["exact", pytest.param("compact", marks=pytest.mark.slow)])
def test_losses_of_some_steps_and_in_every_mode_are_equal_when_features_come_from_the_cache_or_from_the_model(
    tiny_nuscenes_root, tmp_path, profile
):
    workspace, settings = Workspace(home=tmp_path / "work"), (*SMALL, f"extract.profile={profile}")
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=workspace)
    jobs.extract_features(
        "nuscenes", "default", settings, None, retry_failed=False, sharing=Sharing(), workspace=workspace
    )
    other = next(each for each in PROFILES if each != profile)
    with pytest.raises(CacheMismatchError, match=rf'profile:.*"{other}",.*"{profile}"'):
        jobs.train(
            "default", [*SMALL, f"extract.profile={other}"], cached=True, run=tmp_path / "refused", workspace=workspace
        )
    assert_equal_losses(workspace, settings, steps=4)
    assert in_every_mode(workspace, settings, cached=True) == in_every_mode(workspace, settings, cached=False)


@pytest.mark.slow
def test_losses_are_equal_when_a_bfloat16_model_runs_in_the_threads_that_make_batches(tiny_nuscenes_root, tmp_path):
    workspace = Workspace(home=tmp_path / "work")
    settings = (*SMALL, "extract.dtype=bfloat16", "train.workers=2")
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=workspace)
    jobs.extract_features(
        "nuscenes", "default", settings, None, retry_failed=False, sharing=Sharing(), workspace=workspace
    )
    assert_equal_losses(workspace, settings, steps=4)
    assert torch.get_float32_matmul_precision() == "highest"


def assert_equal_losses(workspace, settings, *, steps):
    """Train from the cache and online into ``workspace.home``'s parent; every term of every step must agree."""
    logs = {}
    for cached in (True, False):
        folder = workspace.home.parent / f"cached {cached}"
        done = jobs.train("default", settings, cached=cached, run=folder, workspace=workspace)
        assert done.result["steps"] == steps
        logs[cached] = [record for record in read_log(folder) if "loss" in record]
    assert len(logs[True]) == steps
    terms = [name for name in logs[True][0] if name not in TIMING_KEYS]
    for stored, live in zip(logs[True], logs[False], strict=True):
        for name in terms:
            assert stored[name] == live[name], (stored["step"], name)
    assert logs[True][0]["loss"] != logs[True][-1]["loss"]


def in_every_mode(workspace, settings, *, cached):
    """Losses of source and target in the first step of networks in ``MODES``, and a sum of their gradients."""
    config = load_config("default", [*settings, "train.lam_trg=0.1"]).config
    domains = DomainOpener(workspace, config, cached=cached)
    source, found = domains.source(), []
    plan = batch = None
    for values in MODES:
        torch.manual_seed(1)
        fusion = config.fusion.model_copy(update=values)
        network = Network(
            model=config.model,
            fusion=fusion,
            classes=source.merge.classes,
            taps=choose_taps(fusion, source.features.taps),
            cameras=1,
            device=torch.device("cpu"),
        )
        if network.plan != plan:
            plan = network.plan
            make = StepMaker(
                source=source,
                target=domains.target(),
                plan=plan,
                augment=config.augment,
                settings=config.train,
                device=network.device,
            )
            batch = make(0, 0)
        losses = step_losses(network, batch, torch.ones(6), config.train)
        torch.autograd.backward(losses.total)
        assert {"ce_2d", "xm_3d", "xm_3d_target"} <= losses.terms.keys()
        gradient = sum(parameter.grad.double().abs().sum().item() for parameter in network.parameters())
        found.append((gradient, {name: value.item() for name, value in losses.terms.items()}))
    if not cached:
        backbone = source.features._extractor.backbone
        frozen = [*backbone.unet.parameters(), *backbone.vae.parameters()]
        assert all(parameter.grad is None for parameter in frozen)
    return found
