"""Models as people have them: read where that is safe, else named for what they are with the way to convert them."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from xd3d.errors import ModelError
from xd3d.stages.extract.models import resolve_model, resolve_unet
from xd3d.stages.extract.packing import pack_layers
from xd3d.stages.extract.weights import load_text_encoder, load_unet, load_vae_encoder

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
LOADERS = {
    "unet": lambda model: load_unet(model, torch.float32),
    "vae": lambda model: load_vae_encoder(model, torch.float32),
    "text_encoder": load_text_encoder,
}


@pytest.fixture
def copied(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "copied")


def assert_same(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(values, second[name]) for name, values in first.items())


@pytest.mark.parametrize("part", WEIGHTS)
def test_the_variant_fp16_is_read_if_there_is_no_other(copied, tiny_model, part):
    full = copied / part / WEIGHTS[part]
    half = {name: v.half() if v.is_floating_point() else v for name, v in load_file(full).items()}
    save_file(half, full.with_name(full.name.replace(".safetensors", ".fp16.safetensors")), {"format": "pt"})
    both = resolve_model(str(copied))
    digest = both.digest
    assert digest == resolve_model(str(tiny_model)).digest
    assert_same(LOADERS[part](both), LOADERS[part](resolve_model(str(tiny_model))))
    full.unlink()
    model = resolve_model(str(copied))
    assert model.digest != digest
    rounded = LOADERS[part](resolve_model(str(tiny_model))).half().float()
    assert_same(LOADERS[part](model), rounded)


@pytest.mark.parametrize(
    "part", ["unet", *(pytest.param(part, marks=pytest.mark.slow) for part in ("vae", "text_encoder"))]
)
def test_a_pickle_is_named_with_a_command_that_converts_it(copied, tiny_model, part):
    weights = copied / part / WEIGHTS[part]
    pickle = weights.with_name("pytorch_model.bin")
    torch.save(load_file(weights), pickle)
    weights.unlink()
    with pytest.raises(ModelError, match=rf"'{part}'.*pytorch_model\.bin") as caught:
        resolve_model(str(copied))
    command = re.search(r"python (-c .*?\.safetensors'?)[,;]? or set", str(caught.value))
    assert command is not None
    subprocess.run([sys.executable, *shlex.split(command[1])], check=True, timeout=60)
    assert_same(LOADERS[part](resolve_model(str(copied))), LOADERS[part](resolve_model(str(tiny_model))))


def test_a_pickle_of_a_unet_is_never_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    path = tmp_path / "unet.ckpt"
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelError, match=r"unet\.ckpt.*torch\.load.*weights_only=True"):
        resolve_unet(str(path))


@pytest.mark.parametrize("main", [True, False])
def test_a_folder_of_the_hubs_cache_gives_its_snapshot(tiny_model, tmp_path, main):
    cache = tmp_path / "models--someone--sd"
    shutil.copytree(tiny_model, cache / "snapshots/0123abcd")
    if main:
        shutil.copytree(tiny_model / "unet", cache / "snapshots/older/unet")
        (cache / "refs").mkdir()
        (cache / "refs/main").write_text("0123abcd")
    assert resolve_model(str(cache)).path == cache / "snapshots/0123abcd"
    assert resolve_unet(str(cache)) == cache / "snapshots/0123abcd/unet"
    if main:
        (cache / "refs/main").unlink()
        with pytest.raises(ModelError, match=r"snapshots/0123abcd.*snapshots/older"):
            resolve_model(str(cache))


@pytest.mark.parametrize("name", ["v2-1_512-ema-pruned.safetensors", "v1-5.ckpt"])
def test_a_checkpoint_in_one_file_is_named_with_the_way_to_convert_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ModelError, match=rf"{re.escape(name)}.*from_single_file"):
        resolve_model(str(tmp_path / name))


def pointer(path: Path):
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{1:064d}\nsize 3463726504\n")
    return path


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_pointer_of_git_lfs_is_reported(copied, tmp_path, part):
    pointer(copied / part / WEIGHTS[part])
    with pytest.raises(ModelError, match=rf"{part}/{WEIGHTS[part]}.*git lfs"):
        resolve_model(str(copied))
    assert resolve_model(str(copied), weights="random").weights == "random"
    for name in ([str(copied)] if part == "unet" else []) + [str(pointer(tmp_path / "unet.safetensors"))]:
        with pytest.raises(ModelError, match="git lfs pull"):
            resolve_unet(name)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda model: (model / "tokenizer/vocab.json").unlink(), "no vocabulary"),
        (lambda model: shutil.copy(model / "vae/config.json", model / "unet"), "describes a AutoencoderKL"),
        (lambda model: pointer(model / "text_encoder/config.json"), "config.json is a pointer of Git LFS"),
        (lambda model: (model / "vae" / WEIGHTS["vae"]).write_text("<!DOCTYPE html>"), "is a web page"),
        (lambda model: (file := model / "unet" / WEIGHTS["unet"]).rename(f"{file}.part"), r"\.part, a download that"),
    ],
)
def test_files_of_another_kind_or_half_a_part_are_reported(copied, damage, words):
    damage(copied)
    with pytest.raises(ModelError, match=words):
        resolve_model(str(copied))


def test_a_folder_above_the_model_names_it(copied):
    with pytest.raises(ModelError, match=re.escape(f"give {copied}")):
        resolve_model(str(copied.parent))


def test_shards_without_their_index_are_reported(copied):
    weights = copied / "unet" / WEIGHTS["unet"]
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    with pytest.raises(ModelError, match=r"00001-of-00002.*index\.json"):
        resolve_model(str(copied))


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "model.diffusion_model.", "unet."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_taken_off(tiny_model, tmp_path, prefix):
    file = tmp_path / "unet.safetensors"
    stored = load_file(tiny_model / "unet" / WEIGHTS["unet"])
    others = {"model_ema.decay": torch.zeros(1)}
    save_file(
        {prefix + name.replace("mid_block.", "mid_block._orig_mod."): v for name, v in stored.items()} | others, file
    )
    replaced = load_unet(resolve_model(str(tiny_model), unet=str(file)), torch.float32)
    assert_same(replaced, load_unet(resolve_model(str(tiny_model)), torch.float32))


def test_a_tensor_without_a_prefix_wins_over_one_with(tiny_model, tmp_path):
    file = tmp_path / "unet.safetensors"
    stored = load_file(tiny_model / "unet" / WEIGHTS["unet"])
    save_file({**stored, **{f"module.{name}": torch.zeros_like(v) for name, v in stored.items()}}, file)
    replaced = load_unet(resolve_model(str(tiny_model), unet=str(file)), torch.float32)
    assert_same(replaced, load_unet(resolve_model(str(tiny_model)), torch.float32))


@pytest.mark.parametrize(
    ("key", "facts"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "original Stable Diffusion.*from_single_file"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "LoRA"),
        ("backbone.conv1.weight", r"'backbone\.conv1\.weight'"),
    ],
)
def test_weights_of_another_kind_are_named_for_what_they_are(tiny_model, tmp_path, key, facts):
    save_file({key: torch.zeros(2)}, tmp_path / "unet.safetensors")
    with pytest.raises(ModelError, match=facts):
        load_unet(resolve_model(str(tiny_model), unet=str(tmp_path / "unet.safetensors")), torch.float32)


def test_a_text_encoder_that_lacks_tensors_is_never_filled_at_random(copied):
    file = copied / "text_encoder" / WEIGHTS["text_encoder"]
    save_file({f"module.{name}": values for name, values in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ModelError, match="text encoder"):
        load_text_encoder(resolve_model(str(copied)))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_a_layer_that_overflows_gives_its_values_and_no_error():
    layer, inputs = nn.Conv2d(4, 4, 3), torch.full((1, 4, 8, 8), torch.inf)
    pack_layers(nn.Sequential(layer))
    with torch.inference_mode():
        assert not torch.isfinite(layer(inputs)).any()
