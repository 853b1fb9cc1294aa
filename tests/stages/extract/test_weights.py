"""Weights come from the folder in any published form, or from a seed alone."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from xd3d.errors import ModelError
from xd3d.stages.extract.models import resolve_model
from xd3d.stages.extract.weights import load_text_encoder, load_tokenizer, load_unet, load_vae_encoder, random_state

FLOAT = torch.float32


@pytest.fixture
def copied(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "copied")


def state(module):
    return {name: values.clone() for name, values in module.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(values, second[name]) for name, values in first.items())


def test_random_weights_depend_on_the_seed_and_not_on_threads(tiny_model):
    twins = [load_unet(resolve_model(str(tiny_model), weights="random", seed=5), FLOAT)]
    torch.set_num_threads(3)
    torch.manual_seed(99)
    twins.append(load_unet(resolve_model(str(tiny_model), weights="random", seed=5), FLOAT))
    assert_equal(*map(state, twins))
    other = state(load_unet(resolve_model(str(tiny_model), weights="random", seed=6), FLOAT))
    assert not torch.equal(other["conv_in.weight"], state(twins[0])["conv_in.weight"])


def test_random_weights_are_these_very_numbers():
    drawn = random_state(torch.nn.Linear(4, 2), "layer", 3)
    expected = [[-0.75113058, -0.64392745, -0.83936620, -0.77616817], [0.79137862, 0.29348874, -0.06591629, 0.63195252]]
    torch.testing.assert_close(drawn["weight"], torch.tensor(expected), rtol=0, atol=1e-7)
    assert drawn["bias"].tolist() == [0, 0]


def test_random_weights_keep_signals_in_scale():
    layer = torch.nn.Conv2d(64, 64, 3)
    drawn = random_state(layer, "layer", 0)
    assert drawn["weight"].std() == pytest.approx(1 / (64 * 9) ** 0.5, rel=0.02)
    assert random_state(torch.nn.GroupNorm(2, 4), "norm", 0)["weight"].tolist() == [1, 1, 1, 1]


def test_no_two_random_tensors_are_alike(tiny_model):
    model = resolve_model(str(tiny_model), weights="random")
    unet, encoder = state(load_unet(model, FLOAT)), state(load_text_encoder(model))
    drawn = [values.flatten()[:4].tolist() for part in (unet, encoder) for values in part.values() if values.ndim > 1]
    assert len({tuple(values) for values in drawn}) == len(drawn)


def test_old_names_of_attention_layers_are_understood(copied, tiny_model):
    file = copied / "vae/diffusion_pytorch_model.safetensors"
    old = {}
    for name, values in load_file(file).items():
        for new, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{then}.")
        old[name] = values[..., None, None].clone() if name.endswith("query.weight") else values.clone()
    save_file(old, file)
    read = load_vae_encoder(resolve_model(str(copied)), FLOAT)
    assert_equal(state(read), state(load_vae_encoder(resolve_model(str(tiny_model)), FLOAT)))


def test_weights_in_several_files_are_read_as_one(copied, tiny_model):
    file = copied / "unet/diffusion_pytorch_model.safetensors"
    values = load_file(file)
    file.unlink()
    names = sorted(values)
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for part, chosen in parts.items():
        save_file({name: values[name].clone() for name in chosen}, file.with_name(part))
    weight_map = {name: part for part, chosen in parts.items() for name in chosen}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    read = load_unet(resolve_model(str(copied)), FLOAT)
    assert_equal(state(read), state(load_unet(resolve_model(str(tiny_model)), FLOAT)))


def test_half_precision_files_serve_any_dtype(copied):
    file = copied / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: values.half() for name, values in load_file(file).items()}, file)
    for dtype in (torch.float32, torch.bfloat16):
        assert {values.dtype for values in load_unet(resolve_model(str(copied)), dtype).parameters()} == {dtype}


@pytest.mark.parametrize("damage", ["lacking", "shape", "transposed", "cut"])
def test_weights_that_do_not_fit_are_named(copied, damage):
    file = copied / "unet/diffusion_pytorch_model.safetensors"
    values = {name: tensor.clone() for name, tensor in load_file(file).items()}
    if damage == "lacking":
        del values["conv_in.weight"]
        save_file(values, file)
    elif damage == "shape":
        save_file(values | {"conv_in.weight": torch.zeros(3)}, file)
    elif damage == "transposed":
        save_file(values | {"conv_in.weight": values["conv_in.weight"].transpose(0, 1).contiguous()}, file)
    else:
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"conv_in\.weight|'unet'.*cannot"):
        load_unet(resolve_model(str(copied)), FLOAT)


def test_the_tokenizer_pads_as_its_files_say(real_sd_configs):
    for name, pad in (("sd14", 49407), ("sd21-base", 0)):
        tokenizer = load_tokenizer(resolve_model(str(real_sd_configs / name), weights="random"))
        ids = tokenizer([""], padding="max_length", max_length=77).input_ids[0]
        assert ids == [49406, 49407, *[pad] * 75]


def test_a_damaged_tokenizer_is_a_model_error(copied):
    (copied / "tokenizer/vocab.json").write_text("{")
    with pytest.raises(ModelError, match="part 'tokenizer'"):
        load_tokenizer(resolve_model(str(copied)))
