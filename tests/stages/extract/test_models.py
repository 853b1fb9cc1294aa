"""Models are found by name, folder or hub id; whatever is missing is named, quickly."""

import json
import shutil
import socket
import time

import pytest
import torch
from diffusers import UNet2DConditionModel
from xd3d.errors import ModelError
from xd3d.stages.extract import hub
from xd3d.stages.extract.catalogue import fetch_model
from xd3d.stages.extract.models import resolve_model
from xd3d.stages.extract.weights import load_unet


@pytest.fixture
def broken(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "broken")


def test_a_folder_is_a_model(tiny_model):
    found = resolve_model(str(tiny_model))
    assert (found.path, found.weights) == (tiny_model.resolve(), "pretrained")
    assert found.config("unet")["cross_attention_dim"] == 16


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_without_a_part_names_it(broken, part):
    shutil.rmtree(broken / part)
    with pytest.raises(ModelError, match=f"'{part}'"):
        resolve_model(str(broken))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_without_config_or_weights_names_the_file(broken, part):
    next((broken / part).glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match=rf"'{part}'.*safetensors.*random"):
        resolve_model(str(broken))
    assert resolve_model(str(broken), weights="random").weights == "random"
    (broken / part / "config.json").unlink()
    with pytest.raises(ModelError, match=rf"part '{part}'.*lacks config.json"):
        resolve_model(str(broken), weights="random")


def test_a_shard_that_its_index_names_must_be_there(broken):
    weights = broken / "unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"one\.safetensors, two\.safetensors"):
        resolve_model(str(broken))


@pytest.mark.parametrize(("name", "hint"), [("tiny-stret", "tiny-street"), ("sd21base", "sd21-base")])
def test_a_mistyped_name_gets_the_nearest(name, hint):
    with pytest.raises(ModelError, match=f"'{hint}'"):
        resolve_model(name)


@pytest.fixture
def empty_hub_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def point_hub_at(monkeypatch, address):
    from huggingface_hub import constants
    from huggingface_hub.hf_api import HfApi

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "__init__", _bound_to(HfApi.__init__, address))


def _bound_to(init, address):
    return lambda self, *args, **kwargs: init(self, *args, **(kwargs | {"endpoint": address}))


@pytest.mark.usefixtures("empty_hub_cache")
def test_a_hub_that_refuses_gives_a_reason_and_a_way_out(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    point_hub_at(monkeypatch, f"http://127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"'some/model'"):
        resolve_model("some/model")
    assert time.monotonic() - start < 30


@pytest.mark.usefixtures("empty_hub_cache")
def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(hub, "HUB_TIMEOUT", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point_hub_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(ModelError, match="could not be fetched"):
            fetch_model("sd21-base")
        assert time.monotonic() - start < 30


@pytest.mark.usefixtures("empty_hub_cache")
def test_offline_mode_never_reaches_for_the_network(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("went to the network"))
    with pytest.raises(ModelError, match=r"CompVis/stable-diffusion-v1-4.*HF_HUB_OFFLINE"):
        resolve_model("sd14")


def test_the_digest_follows_what_is_used(broken, tiny_model):
    base, random = resolve_model(str(tiny_model)), resolve_model(str(tiny_model), weights="random")
    assert base.digest != random.digest
    (broken / "vae/notes.md").write_text("a note")
    assert resolve_model(str(broken)).digest == base.digest
    weights = broken / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    assert resolve_model(str(broken)).digest != base.digest
    assert resolve_model(str(broken), weights="random").digest == random.digest
    config = json.loads((broken / "scheduler/scheduler_config.json").read_text())
    (broken / "scheduler/scheduler_config.json").write_text(json.dumps(config | {"beta_end": 0.5}))
    assert resolve_model(str(broken), weights="random").digest != random.digest


def test_digests_of_large_files_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    from xd3d.stages.extract import digests

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(digests, "LARGE", 10)
    file = tmp_path / "weights"
    file.write_bytes(b"x" * 100)
    first = digests.file_digest(file)
    with monkeypatch.context() as patch:
        patch.setattr(digests, "_hash", lambda _: pytest.fail("hashed again"))
        assert digests.file_digest(file) == first
    file.write_bytes(b"y" * 101)
    assert digests.file_digest(file) != first
    (tmp_path / "home/xd3d/digests.json").write_text("{broken")
    assert digests.file_digest(file) != first


@pytest.fixture
def other_unet(tiny_model, tmp_path):
    """A UNet folder of the same shape as the tiny model's, every weight negated."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model / "unet", tmp_path / "other/unet")
    weights = folder / "diffusion_pytorch_model.safetensors"
    save_file({name: -values for name, values in load_file(weights).items()}, weights)
    return folder


def first_weights(model):
    unet = load_unet(model, torch.float32)
    assert isinstance(unet, UNet2DConditionModel)
    return unet.state_dict()["conv_in.weight"]


@pytest.mark.parametrize("form", ["", "..", "diffusion_pytorch_model.safetensors"])
def test_a_folder_or_a_file_replaces_the_unet(tiny_model, other_unet, form):
    own = resolve_model(str(tiny_model))
    replaced = resolve_model(str(tiny_model), unet=str(other_unet / form))
    assert torch.equal(first_weights(replaced), -first_weights(own))
    assert (replaced.digest, own.unet_digest) == (own.digest, None)
    digest = replaced.unet_digest
    weights = other_unet / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    assert resolve_model(str(tiny_model), unet=str(other_unet / form)).unet_digest != digest


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tokenizer", "holds no UNet"),
        ("unet/config.json", "no .safetensors file"),
        ("nowhere", "no UNet weights 'nowhere'.*cleandift-sd15, cleandift-sd21"),
        ("text_encoder/model.safetensors", "lack .* tensors that its config asks for"),
    ],
)
def test_unet_weights_that_are_none_are_named(tiny_model, name, reason):
    path = tiny_model / name
    with pytest.raises(ModelError, match=reason):
        first_weights(resolve_model(str(tiny_model), unet=str(path) if path.exists() else name))
