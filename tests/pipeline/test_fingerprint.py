"""``train --cached`` refuses a cache whose features were made otherwise, and prints just the field that differs."""

import shutil
from pathlib import Path

import pytest
from xd3d.cache.schema import TapSpec
from xd3d.cache.writer import CacheWriter
from xd3d.errors import CacheMismatchError
from xd3d.pipeline import jobs
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.extract import fingerprint as module
from xd3d.stages.extract import models

TINY = Path(models.__file__).parent / "models" / "tiny-street"

NOISY = {"timestep": 100, "draws": 2}
RANDOM = {"weights": "random"}
SEARCHED = {"agents.tap_weights": "{up1: 1.5}", "agents.grid": "up2"}

#: the field that is to be printed -> settings the cache is made with, beside float32, and those that training asks for
SETTINGS = {
    "model": ({}, {"model": "{folder}/model"}),
    "weights": (RANDOM, {"weights_seed": 1}),
    "unet": ({"unet": "{folder}/unet"}, {"unet": "{folder}/model"}),
    "taps": ({}, {"taps": "[up1, up2]"}),
    "timestep": (NOISY, {"timestep": 200}),
    "noise_seed": (NOISY, {"noise_seed": 7}),
    "draws": (NOISY, {"draws": 3}),
    "noise": ({"timestep": 100, "unet": "{folder}/unet", "noise": False}, {"noise": True}),
    "image_size": ({}, {"image_size": "[96, 160]"}),
    "dtype": ({}, {"dtype": "bfloat16"}),
    "views": ({}, {"views": "[identity, hflip]"}),
    "decoding": ({}, {"decoding": "scaled"}),
    "profile": ({}, {"profile": "compact"}),
    "agents.count": ({}, {"agents.count": 9}),
    "agents.rounds": ({}, {"agents.rounds": 3}),
    "agents.temperature": ({}, {"agents.temperature": 0.03}),
    "agents.seeds": ({}, {"agents.seeds": "grid"}),
    "agents.assign": ({}, {"agents.assign": "features"}),
    "agents.grid": (SEARCHED, {"agents.grid": "up1"}),
    "agents.tap_weights.up1": (SEARCHED, {"agents.tap_weights": "{up1: 2.0}"}),
    "agents.position_weight": ({}, {"agents.position_weight": 0.25}),
    "agents.rgb_weight": ({}, {"agents.rgb_weight": 0.5}),
}
CONSTANTS = {"format": "FEATURE_FORMAT", "prompt": "PROMPT", "image_method": "IMAGE_METHOD"}


@pytest.fixture(scope="module")
def workspace(tiny_nuscenes_root, tmp_path_factory):
    """A workspace with an index; beside it another model, and UNet weights."""
    home = tmp_path_factory.mktemp("fingerprint")
    for name in ("model", "unet"):
        shutil.copytree(TINY, home / name)
        weights = home / name / "unet/diffusion_pytorch_model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ (1 if name == "model" else 2)]))
    prepared = Workspace(home=home / "work")
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=prepared)
    return prepared


def overrides(workspace, settings):
    chosen = {"dtype": "float32", "image_size": "[90, 160]", **settings}
    folder = workspace.home.parent
    return [f"extract.{key}={str(value).replace('{folder}', str(folder))}" for key, value in chosen.items()]


def make_cache(workspace, settings):
    """An empty cache with the fingerprint of ``settings``, the only one of the workspace."""
    shutil.rmtree(workspace.home / "cache", ignore_errors=True)
    opener = DomainOpener(workspace, load_config("default", overrides(workspace, settings)).config, cached=True)
    index, path = opener.index("nuscenes"), opener.cache_path("nuscenes")
    path.parent.mkdir()
    tap = TapSpec(name="up1", channels=1, height=1, width=1, extent=(1.0, 1.0))
    keys = [str(key) for key in index.images.key]
    fields = opener.fingerprint("nuscenes")
    CacheWriter.open(path, taps=[tap], agents=1, image_keys=keys, images_per_frame=1, fingerprint=fields).close()
    return fields


def refusal(workspace, settings):
    with pytest.raises(CacheMismatchError) as refused:
        jobs.train("default", overrides(workspace, settings), cached=True, run=Path("never"), workspace=workspace)
    lines = [line.strip() for line in str(refused.value).splitlines() if ": expected " in line]
    assert "xd3d extract-features" in str(refused.value)
    return lines


@pytest.mark.parametrize("field", SETTINGS)
def test_a_setting_that_differs_is_named_alone(workspace, field):
    made, change = SETTINGS[field]
    make_cache(workspace, made)
    lines = refusal(workspace, {**made, **change})
    # noise has a seed, a clean image has none
    expected = [field, "noise_seed"] if field == "noise" else [field]
    assert [line.partition(": expected ")[0] for line in lines] == expected


@pytest.mark.parametrize("field", CONSTANTS)
def test_another_version_of_stage_one_is_named_alone(workspace, monkeypatch, field):
    make_cache(workspace, {})
    monkeypatch.setattr(module, CONSTANTS[field], module.FEATURE_FORMAT + 1 if field == "format" else "other")
    (line,) = refusal(workspace, {})
    assert line.startswith(f"{field}: expected ")


def test_another_index_is_named_alone(workspace, tiny_nuscenes_root):
    make_cache(workspace, {})
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_BACK", workspace=workspace)
    try:
        (line,) = refusal(workspace, {})
    finally:
        jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=workspace)
    assert line.startswith("index: expected ")


def test_no_field_is_left_out(workspace):
    rare = {"timestep": 100, "draws": 2, "unet": "{folder}/unet", "profile": "compact", "decoding": "scaled"}
    everything = make_cache(workspace, rare)
    tested = {field.partition(".")[0] for field in SETTINGS} | {*CONSTANTS, "index"}
    assert {*everything, "noise"} == tested
