"""The backbone gives what stock diffusers modules with plain hooks give, and stops where it should."""

import json
import shutil

import numpy as np
import pytest
import torch
from xd3d.errors import ModelError
from xd3d.stages.extract.diffusion_backbone import DiffusionBackbone, add_noise
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.taps import find_taps, tap_addresses

CPU = torch.device("cpu")
EVERY_TAP = ("mid", "mid.0", "up0", "up0.0:residual", "up1.0", "up1", "up1:residual", "up2", "up3.0", "up3")


def load(settings, **changes):
    chosen = settings(**changes)
    model = settings_model(chosen)
    return DiffusionBackbone(model=model, settings=chosen, device=CPU)


def pictures(count, size, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (count, 3, *size), dtype=np.uint8)
    return torch.from_numpy(values)


@torch.no_grad()
def stock_features(folder, images, noise=None):
    """Features by diffusers alone: a stock pipeline's modules, hooks, and a forward pass that runs to its end."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    vae = AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False).eval()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    ids = tokenizer("", padding="max_length", max_length=12, truncation=True, return_tensors="pt").input_ids
    text = encoder(ids)[0]
    found = {}
    for i, block in enumerate([unet.mid_block, *unet.up_blocks]):
        name = f"up{i - 1}" if i else "mid"
        for j, resnet in enumerate(block.resnets):
            for suffix, module in (("", resnet), (":residual", resnet.conv2)):
                names = [f"{name}.{j}{suffix}", *([f"{name}{suffix}"] if j == len(block.resnets) - 1 else [])]
                module.register_forward_hook(
                    lambda _m, _i, output, names=names: found.update(dict.fromkeys(names, output))
                )
    height, width = images.shape[-2:]
    padded = torch.cat([images, images[:, :, -1:].expand(-1, -1, -height % 8, -1)], 2)
    padded = torch.cat([padded, padded[..., -1:].expand(-1, -1, -1, -width % 8)], 3)
    latents = vae.encode(2 * (padded.float() / 255) - 1).latent_dist.mean * 0.31
    timestep = 0
    if noise is not None:
        timestep, values = noise
        if values is not None:
            scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
            latents = scheduler.add_noise(latents, values, torch.tensor([timestep] * len(latents)))
    unet(latents, timestep, text.expand(len(latents), -1, -1))
    return found


@pytest.mark.parametrize("size", [(64, 128), (100, 180), (97, 33)])
def test_every_tap_equals_a_stock_hook_bit_for_bit(settings, tiny_model, size):
    backbone = load(settings, taps=EVERY_TAP, image_size=size)
    images = pictures(2, size)
    maps, stock = backbone(images, ["a", "b"]), stock_features(tiny_model, images)
    for name in EVERY_TAP:
        spec = backbone.specs[name]
        assert maps[name].shape == (2, spec.channels, spec.height, spec.width)
        assert torch.equal(maps[name], stock[name][..., : spec.height, : spec.width]), name


@pytest.fixture
def sd_shaped(tiny_model, real_sd_configs, tmp_path):
    """Call it for the tiny model with the UNet and the scheduler of a published config, at a fraction of the width."""
    from diffusers import UNet2DConditionModel

    def make(name):
        folder = shutil.copytree(tiny_model, tmp_path / name)
        config = json.loads((real_sd_configs / name / "unet/config.json").read_text())
        heads = config["attention_head_dim"]
        config |= {"block_out_channels": [32, 64, 96, 96], "norm_num_groups": 8, "cross_attention_dim": 16}
        config["attention_head_dim"] = [max(1, count // 5) for count in heads] if isinstance(heads, list) else heads
        torch.manual_seed(11)
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
        shutil.copy(real_sd_configs / name / "scheduler/scheduler_config.json", folder / "scheduler")
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "prediction", "timestep"),
    [
        ("sd14", "epsilon", 0),
        pytest.param("sd21-base", "epsilon", 261, marks=pytest.mark.slow),
        ("sd21", "v_prediction", 261),
    ],
)
def test_every_address_of_the_published_shapes_equals_a_stock_hook_bit_for_bit(
    settings, sd_shaped, name, prediction, timestep
):
    folder, size = sd_shaped(name), (97, 133)
    addresses = tuple(tap_addresses(load(settings, model=str(folder), taps=("up1",), image_size=size).unet))
    assert len(addresses) == 2 * (3 + 4 * 4)
    backbone = load(settings, model=str(folder), taps=addresses, image_size=size, timestep=timestep, noise_seed=3)
    assert backbone.prediction_type == prediction
    images = pictures(1, size)
    drawn = add_noise(torch.zeros(1, 4, 13, 17), ["a"], (0.0, 1.0), 3)
    maps = backbone(images, ["a"])
    stock = stock_features(folder, images, noise=(timestep, drawn) if timestep else None)
    for address in addresses:
        spec = backbone.specs[address]
        assert torch.equal(maps[address], stock[address][..., : spec.height, : spec.width]), address


def test_residual_is_the_branch_before_the_shortcut(settings):
    backbone = load(settings, taps=("up2", "up2:residual"))
    maps = backbone(pictures(1, (100, 180)), ["a"])
    assert not torch.equal(maps["up2"], maps["up2:residual"])


def test_addresses_name_every_resnet(settings):
    backbone = load(settings, taps=("up1",))
    addresses = tap_addresses(backbone.unet)
    assert len(addresses) == 5 * 3 * 2
    for address in addresses:
        assert find_taps(backbone.unet, [address])[0].name == address


@pytest.mark.parametrize(("address", "hint"), [("up4", "up"), ("up1.2", "up1."), ("mid.7", "mid.")])
def test_an_address_that_is_not_there_names_the_nearest(settings, address, hint):
    with pytest.raises(ModelError, match=rf"'{address}'.*'{hint}"):
        load(settings, taps=(address,))


@pytest.mark.parametrize("last", ["mid", "up0", "up1.0", "up2:residual"])
def test_the_pass_ends_at_the_last_tap(settings, last):
    backbone = load(settings, taps=("mid.0", last) if last != "mid" else ("mid",))
    ran = []
    for name, module in backbone.unet.named_modules():
        module.register_forward_pre_hook(lambda _m, _i, name=name: ran.append(name))
    backbone(pictures(1, (100, 180)), ["a"])
    reached = {"mid": "mid_block.resnets.1", "up0": "up_blocks.0.resnets.1", "up1.0": "up_blocks.1.resnets.0"}
    assert ran[-1].startswith(reached.get(last, "up_blocks.2.resnets.1.conv2"))
    assert "conv_out" not in ran
    assert all(ran.count(name) == 1 for name in ran if name.endswith("conv2"))


def test_hooks_are_gone_after_a_pass(settings):
    backbone = load(settings)
    backbone(pictures(1, (100, 180)), ["a"])
    assert not any(module._forward_hooks for module in backbone.unet.modules())


def test_maps_keep_no_cell_that_lies_in_the_padding(settings):
    for size in ((100, 180), (104, 184), (65, 129)):
        backbone = load(settings, image_size=size)
        for name, spec in backbone.specs.items():
            stride = {"up0": 64, "up1": 32, "up2": 16, "up3": 8, "rgb": 4}[name]
            assert spec.extent == (size[0] / stride, size[1] / stride)
            assert spec.height - 1 < spec.extent[0] <= spec.height
            assert spec.width - 1 < spec.extent[1] <= spec.width


def test_rgb_is_the_mean_colour_of_squares(settings):
    backbone = load(settings, image_size=(50, 70), taps=("mid", "rgb"))
    image = pictures(1, (50, 70))
    cells = backbone(image, ["a"])["rgb"]
    assert cells.shape == (1, 3, 13, 18)
    assert cells.dtype == torch.uint8
    for row, column in ((0, 0), (5, 9), (12, 3), (12, 17)):
        patch = image[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].double()
        assert torch.equal(cells[0, :, row, column], patch.mean((1, 2)).round().to(torch.uint8))


def test_noise_follows_the_scheduler_and_the_key_only(settings, tiny_model):
    images = pictures(2, (100, 180))
    backbone = load(settings, taps=("up2",), timestep=200, noise_seed=3)
    both = backbone(images, ["a", "b"])["up2"]
    swapped = backbone(images.flip(0), ["b", "a"])["up2"]
    torch.testing.assert_close(both, swapped.flip(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both, backbone(images, ["a", "c"])["up2"])
    other = load(settings, taps=("up2",), timestep=200, noise_seed=4)
    assert not torch.allclose(both, other(images, ["a", "b"])["up2"])
    drawn = add_noise(torch.zeros(2, 4, 13, 23), ["a", "b"], (0.0, 1.0), 3)
    assert abs(float(drawn.std()) - 1) < 0.05
    stock = stock_features(tiny_model, images, noise=(200, drawn))["up2"]
    torch.testing.assert_close(both, stock[..., : both.shape[2], : both.shape[3]], rtol=1e-4, atol=1e-5)


def test_features_are_averaged_over_draws_of_the_noise_and_the_image_is_encoded_once(settings, monkeypatch):
    from xd3d.stages.extract import diffusion_backbone as module

    images, taps = pictures(2, (100, 180)), ("up1", "up2", "rgb")
    single = []
    for draw in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(module, "add_noise", lambda *args, draw=draw: add_noise(*args[:4], draw))
            single.append(load(settings, taps=taps, timestep=200)(images, ["a", "b"]))
    averaged = load(settings, taps=taps, timestep=200, draws=3)
    encode, calls = averaged.encode, []
    averaged.encode = lambda values: (calls.append(1), encode(values))[1]
    found = averaged(images, ["a", "b"])
    assert calls == [1]
    for name in ("up1", "up2"):
        torch.testing.assert_close(found[name], sum(draw[name] for draw in single) / 3, rtol=1e-5, atol=1e-6)
        assert not torch.equal(single[0][name], single[1][name])
    assert torch.equal(found["rgb"], single[0]["rgb"])


def test_each_draw_has_noise_of_its_own_and_the_first_is_that_of_a_single_draw():
    zeros = torch.zeros(1, 4, 8, 8)
    draws = [add_noise(zeros, ["a"], (0.0, 1.0), 3, draw) for draw in range(3)]
    assert torch.equal(draws[0], add_noise(zeros, ["a"], (0.0, 1.0), 3))
    assert len({values.numpy().tobytes() for values in draws}) == 3
    # the generator's seed and numpy's promise of stable streams: caches made anywhere and any time agree
    np.testing.assert_allclose(draws[0][0, 0, 0, :3], [-0.24619406, -0.31579378, -0.08700863], rtol=1e-6)


def test_weights_trained_for_clean_images_get_them_at_the_step_they_know(settings, tiny_model):
    unet = str(tiny_model / "unet")
    clean = load(settings, taps=("up2",), timestep=261, noise=False, unet=unet)
    images = pictures(1, (100, 180))
    maps = clean(images, ["a"])["up2"]
    stock = stock_features(tiny_model, images, noise=(261, None))["up2"]
    assert torch.equal(maps, stock[..., : maps.shape[2], : maps.shape[3]])


def test_a_timestep_beyond_the_scheduler_is_refused(settings):
    with pytest.raises(ModelError, match="ends at 999"):
        load(settings, timestep=1000)


def test_nothing_but_the_encoder_half_of_the_autoencoder_is_kept(settings):
    backbone = load(settings)
    assert not hasattr(backbone.vae, "decoder")
    assert not any(values.requires_grad for values in backbone(pictures(1, (100, 180)), ["a"]).values())


def test_bfloat16_features_lie_close_to_float32(settings):
    images = pictures(1, (100, 180))
    exact = load(settings, taps=("up2",))(images, ["a"])["up2"]
    rough = load(settings, taps=("up2",), dtype="bfloat16")(images, ["a"])["up2"]
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=1).mean() > 0.99
