"""Every kind of network passes one contract, and gives what the stock model gives."""

import json
import math
import shutil
import socket
import warnings

import numpy as np
import pytest
import torch
from xd3d.errors import ConfigError, ModelError
from xd3d.stages.extract.backbones import open_backbone, tap_specs, with_default_taps
from xd3d.stages.extract.models import settings_model

CPU = torch.device("cpu")
VITS = ("dinov2", "dinov2-registers", "dinov3", "clip", "siglip", "vit", "mae")
PYRAMIDS = ("dinov3-convnext", "swin", "convnext", "segformer")
TAPS = {
    "diffusers": ("up1", "up2", "rgb"),
    "onnx": ("shallow", "deep", "rgb"),
    **dict.fromkeys(VITS, ("block0", "block1", "last", "rgb")),
    **dict.fromkeys(PYRAMIDS, ("stage0", "stage2", "last", "rgb")),
}
#: tokens before those of the grid, and the patch
TOKENS = {
    "dinov2": (1, 14),
    "dinov2-registers": (5, 14),
    "dinov3": (5, 16),
    "clip": (1, 14),
    "siglip": (0, 16),
    "vit": (1, 16),
    "mae": (1, 16),
}
SIZES = [(100, 180), (97, 65), (128, 192)]


def pictures(count, size, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (count, 3, *size), dtype=np.uint8)
    return torch.from_numpy(values)


def load(settings, folder, taps, **changes):
    chosen = settings(model=str(folder), taps=taps, **changes)
    return open_backbone(settings_model(chosen), chosen, CPU)


def edge_padded(images, multiple, mean, std):
    """Normalised float32 images, padded by repeating the last row and column, by numpy."""
    height, width = images.shape[2:]
    values = (images.numpy().astype(np.float64) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    sides = ((0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple))
    return torch.from_numpy(np.pad(values, sides, mode="edge").astype(np.float32))


@pytest.fixture(params=[*TAPS])
def kind(request):
    return request.param


@pytest.fixture
def backbone(kind, settings, network_folder):
    return load(settings, network_folder(kind), TAPS[kind])


class TestContract:
    def test_maps_have_the_shapes_that_are_reported_without_weights(self, kind, backbone, settings, network_folder):
        chosen = settings(model=str(network_folder(kind)), taps=TAPS[kind])
        images = pictures(2, chosen.image_size)
        maps = backbone(images, ["a", "b"])
        assert [*maps] == [*backbone.specs] == [*TAPS[kind]]
        assert tap_specs(settings_model(chosen), chosen) == backbone.specs
        for tap, values in maps.items():
            spec = backbone.specs[tap]
            assert values.shape == (2, spec.channels, spec.height, spec.width)
            assert values.dtype == (torch.uint8 if tap == "rgb" else torch.float32)
            assert values.isfinite().all()
            assert not values.requires_grad
        assert backbone.dtype == torch.float32

    def test_extents_span_the_image_and_no_cell_lies_in_the_padding(self, kind, settings, network_folder):
        for size in SIZES:
            for tap, spec in load(settings, network_folder(kind), TAPS[kind], image_size=size).specs.items():
                stride = size[0] / spec.extent[0]
                assert stride == pytest.approx(size[1] / spec.extent[1]), tap
                assert stride == round(stride)
                assert (spec.height, spec.width) == tuple(math.ceil(extent) for extent in spec.extent)

    def test_what_lies_in_the_padding_is_never_read(self, kind, settings, network_folder, monkeypatch):
        """Cells that are read differ by the padding at the edge at most, never far from it, and are the same cells."""
        from xd3d.stages.extract import diffusion_backbone, onnx_backbone, vision_backbone

        size = (100, 180)
        found = load(settings, network_folder(kind), TAPS[kind], image_size=size)
        maps = found(pictures(1, size), ["a"])
        for module in (diffusion_backbone, onnx_backbone, vision_backbone):
            grown = module.pad_to_multiple
            monkeypatch.setattr(module, "pad_to_multiple", lambda images, side, pad=grown: pad(pad(images, side), 224))
        wider = found(pictures(1, size), ["a"])
        assert {tap: values.shape for tap, values in wider.items()} == {tap: m.shape for tap, m in maps.items()}

    def test_the_same_pictures_give_the_same_bits(self, kind, backbone):
        images = pictures(2, (100, 180))
        first, second = backbone(images, ["a", "b"]), backbone(images, ["a", "b"])
        assert all(torch.equal(values, second[tap]) for tap, values in first.items())

    def test_an_image_does_not_depend_on_those_beside_it(self, kind, backbone):
        images = pictures(3, (100, 180))
        together = backbone(images, ["a", "b", "c"])
        for row, key in enumerate("abc"):
            alone = backbone(images[row : row + 1], [key])
            for tap, values in alone.items():
                torch.testing.assert_close(values[0], together[tap][row], rtol=1e-4, atol=1e-5)

    def test_nothing_behind_the_last_tap_is_computed(self, kind, settings, network_folder):
        backbone = load(settings, network_folder(kind), TAPS[kind][:1])
        if kind == "onnx":
            assert [output.name for output in backbone._session.get_outputs()] == ["shallow"]
            return
        ran, network = [], backbone.unet if kind == "diffusers" else backbone.network
        for module in network.modules():
            module.register_forward_pre_hook(lambda module, _: ran.append(module))
        backbone(pictures(1, (100, 180)), ["a"])
        assert ran[-1] in set(backbone.taps[0].module.modules())

    def test_no_network_is_asked_and_nothing_is_unpickled(self, kind, settings, network_folder, monkeypatch):
        def refuse(*_args, **_options):
            raise AssertionError("not here")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(torch, "load", refuse)
        monkeypatch.setattr("pickle.load", refuse)
        load(settings, network_folder(kind), TAPS[kind])(pictures(1, (100, 180)), ["a"])

    def test_the_digest_covers_what_decides_the_features(self, kind, settings, network_folder, tmp_path):
        copied = shutil.copytree(network_folder(kind), tmp_path / "copied")
        chosen = settings(model=str(copied), taps=TAPS[kind])
        digest = settings_model(chosen).digest
        assert digest == settings_model(settings(model=str(network_folder(kind)), taps=TAPS[kind])).digest
        (copied / "README.md").write_text("a note")
        assert settings_model(chosen).digest == digest
        deciding = {
            "diffusers": ("unet/diffusion_pytorch_model.safetensors", "vae/config.json"),
            "onnx": ("net.onnx", "net.yaml"),
        }
        for name in deciding.get(kind, ("model.safetensors", "config.json", "preprocessor_config.json")):
            before = (copied / name).read_bytes()
            weights = name.endswith(".safetensors")
            (copied / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]) if weights else before + b" ")
            assert settings_model(chosen).digest != digest, name
            (copied / name).write_bytes(before)
        assert settings_model(chosen).digest == digest

    def test_a_tap_that_is_not_there_is_refused_with_those_that_are(self, kind, settings, network_folder):
        with pytest.raises(ModelError, match="block77"):
            load(settings, network_folder(kind), ("block77",))


@torch.no_grad()
def stock_states(folder, name, images):
    """Hidden states and last hidden state of the stock model, as maps [batch, channels, h, w] of the padded image."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    config = getattr(config, "vision_config", config)
    if name == "mae":
        config.mask_ratio = 0.0
    kind = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel", "mae": "ViTMAEModel"}.get(name, "AutoModel")
    with warnings.catch_warnings(action="ignore"):
        network = getattr(transformers, kind).from_pretrained(folder, config=config).eval()
    resized = {"interpolate_pos_encoding": True} if name in ("clip", "siglip", "vit", "mae") else {}
    output = network(images, output_hidden_states=True, **resized)
    states = output.hidden_states[0 if name == "segformer" else 1 :]
    if name in PYRAMIDS:
        return _pyramid_maps(name, output, states, images)
    prefix, patch = TOKENS[name]
    grid = (images.shape[2] // patch, images.shape[3] // patch)
    if name == "mae":  # it shuffles the patches even where it masks none
        order = output.ids_restore[..., None].expand(-1, -1, states[0].shape[2])
        maps = [torch.gather(state[:, 1:], 1, order) for state in (*states, output.last_hidden_state)]
    else:
        maps = [state[:, prefix:] for state in (*states, output.last_hidden_state)]
    *blocks, last = [values.transpose(1, 2).reshape(len(images), -1, *grid) for values in maps]
    return {**{f"block{i}": values for i, values in enumerate(blocks)}, "last": last}


def _pyramid_maps(name, output, states, images):
    last = output.last_hidden_state
    if name == "swin":
        states = output.reshaped_hidden_states[1:]
        last = last.transpose(1, 2).reshape(states[-1].shape)
    if name == "dinov3-convnext":
        last = last[:, 1:].transpose(1, 2).reshape(states[-1].shape)
    return {**{f"stage{i}": values for i, values in enumerate(states)}, "last": last}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*VITS, *PYRAMIDS])
def test_features_are_the_hidden_states_of_the_stock_model(name, size, settings, network_folder, tiny_networks):
    count = 3 if name in VITS else 4
    taps = (*(f"{'block' if name in VITS else 'stage'}{i}" for i in range(count)), "last")
    backbone = load(settings, network_folder(name), taps, image_size=size)
    images = pictures(2, size)
    multiple = TOKENS[name][1] if name in VITS else 32
    stock = stock_states(
        network_folder(name), name, edge_padded(images, multiple, tiny_networks.MEAN, tiny_networks.STD)
    )
    for tap, values in backbone(images, ["a", "b"]).items():
        spec = backbone.specs[tap]
        torch.testing.assert_close(values, stock[tap][..., : spec.height, : spec.width], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def dinov2_by_hand(weights, images, heads, blocks):
    """DINOv2 with registers from its paper's equations: patches, class and register tokens, pre-norm blocks."""
    from torch.nn.functional import conv2d, gelu, interpolate, layer_norm

    def norm(values, name):
        return layer_norm(values, values.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def linear(values, name):
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    projection = "embeddings.patch_embeddings.projection"
    patches = conv2d(images, weights[f"{projection}.weight"], weights[f"{projection}.bias"], stride=14)
    grid = patches.shape[2:]
    positions = weights["embeddings.position_embeddings"]
    side = math.isqrt(positions.shape[1] - 1)
    square = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = patches + interpolate(square, grid, mode="bicubic", align_corners=False, antialias=True)
    first = (weights["embeddings.cls_token"] + positions[:, :1]).expand(len(images), -1, -1)
    registers = weights["embeddings.register_tokens"].expand(len(images), -1, -1)
    x = torch.cat([first, registers, patches.flatten(2).transpose(1, 2)], 1)
    for i in range(blocks):
        block = f"encoder.layer.{i}"
        normed = norm(x, f"{block}.norm1")
        query, key, value = (
            linear(normed, f"{block}.attention.{name}").unflatten(2, (heads, -1)).transpose(1, 2)
            for name in ("attention.query", "attention.key", "attention.value")
        )
        attended = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(-1) @ value
        attended = linear(attended.transpose(1, 2).flatten(2), f"{block}.attention.output.dense")
        x = x + attended * weights[f"{block}.layer_scale1.lambda1"]
        hidden = gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(hidden, f"{block}.mlp.fc2") * weights[f"{block}.layer_scale2.lambda1"]
    return x[:, 1 + registers.shape[1] :].transpose(1, 2).reshape(len(images), -1, *grid)


def test_dinov2_with_registers_equals_its_equations(settings, network_folder, tiny_networks):
    from safetensors.torch import load_file

    folder, size = network_folder("dinov2-registers"), (100, 180)
    backbone, images = load(settings, folder, ("block1",), image_size=size), pictures(1, size)
    padded = edge_padded(images, 14, tiny_networks.MEAN, tiny_networks.STD)
    stored = load_file(folder / "model.safetensors")
    expected = dinov2_by_hand(stored, padded, heads=2, blocks=2)
    found = backbone(images, ["a"])["block1"]
    torch.testing.assert_close(found, expected[..., : found.shape[2], : found.shape[3]], rtol=1e-4, atol=1e-4)


def test_pictures_are_not_rescaled_where_the_processor_does_not(settings, network_folder, tmp_path):
    folder = shutil.copytree(network_folder("dinov2"), tmp_path / "copied")
    file = folder / "preprocessor_config.json"
    facts = json.loads(file.read_text())
    scaled = {name: [255 * value for value in facts[name]] for name in ("image_mean", "image_std")}
    file.write_text(json.dumps({**facts, **scaled, "do_rescale": False}))
    images = pictures(1, (100, 180))
    found, expected = (load(settings, each, ("block1",))(images, ["a"]) for each in (folder, network_folder("dinov2")))
    torch.testing.assert_close(found["block1"], expected["block1"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dinov2", "swin"])
def test_the_default_taps_are_the_last_block_or_every_stage(name, settings, network_folder):
    from xd3d.stages.extract.settings import DEFAULT_TAPS

    chosen = settings(model=str(network_folder(name)), taps=DEFAULT_TAPS)
    taps = with_default_taps(settings_model(chosen), chosen).taps
    assert taps == {"dinov2": ("block2", "rgb"), "swin": ("stage0", "stage1", "stage2", "stage3", "rgb")}[name]


def test_random_weights_depend_on_the_seed_alone(settings, network_folder):
    images = pictures(1, (100, 180))

    def features(seed):
        options = {"weights": "random", "weights_seed": seed}
        return load(settings, network_folder("dinov2"), ("block1",), **options)(images, ["a"])["block1"]

    torch.manual_seed(1)
    first = features(1)
    torch.manual_seed(2)
    assert torch.equal(first, features(1))
    assert not torch.allclose(first, features(2))
    assert first.std() > 0.01


def test_bfloat16_features_lie_close_to_float32(settings, network_folder):
    images, folder = pictures(1, (100, 180)), network_folder("dinov2")
    exact, rough = (
        load(settings, folder, ("block1",), dtype=dtype)(images, ["a"])["block1"] for dtype in ("float32", "bfloat16")
    )
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=1).mean() > 0.99


class TestBadFolders:
    @pytest.fixture
    def copied(self, network_folder, tmp_path):
        return shutil.copytree(network_folder("dinov2"), tmp_path / "copied")

    def refused(self, settings, folder, **changes):
        with pytest.raises((ModelError, ConfigError)) as error:
            load(settings, folder, changes.pop("taps", ("block0",)), **changes)
        return str(error.value)

    def test_without_a_processor_config(self, settings, copied):
        (copied / "preprocessor_config.json").unlink()
        assert "preprocessor_config.json" in self.refused(settings, copied)

    def test_with_a_processor_config_without_a_mean(self, settings, copied):
        (copied / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "image_std": [1, 1, 1]}))
        assert "image_mean" in self.refused(settings, copied)

    def test_without_safetensors(self, settings, copied):
        (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
        message = self.refused(settings, copied)
        assert "model.safetensors" in message
        assert "pytorch_model.bin" in message

    @pytest.mark.parametrize(
        ("text", "facts"),
        [
            ("{bad", "no JSON"),
            ("[1]", "list"),
            (json.dumps({"image_mean": [0.5], "image_std": [0.5]}), "[0.5]"),
            (json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 0}), "rescale_factor 0"),
        ],
    )
    def test_with_a_damaged_processor_config(self, text, facts, settings, copied):
        (copied / "preprocessor_config.json").write_text(text)
        message = self.refused(settings, copied)
        assert "preprocessor_config.json" in message
        assert facts in message

    @pytest.mark.parametrize("text", ["{bad", "{}", '{"weight_map": {"a": "model-1.safetensors"}}'])
    def test_with_a_damaged_index_of_weights(self, text, settings, copied):
        (copied / "model.safetensors").rename(copied / "model-00001-of-00001.safetensors")
        (copied / "model.safetensors.index.json").write_text(text)
        assert "model.safetensors.index.json" in self.refused(settings, copied)

    def test_with_a_link_to_weights_that_are_gone(self, settings, copied, network_folder):
        (copied / "model.safetensors").unlink()
        (copied / "model.safetensors").symlink_to(copied / "gone")
        assert "gone" in self.refused(settings, copied)

    @pytest.mark.parametrize("change", [{"hidden_size": 48}, {"num_hidden_layers": 5}])
    def test_with_a_config_of_other_sizes(self, change, settings, copied):
        facts = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**facts, **change}))
        message = self.refused(settings, copied)
        assert "cls_token' has shape [1, 1, 32], not [1, 1, 48]" in message or "encoder.layer.3" in message

    def test_that_hold_the_unet_of_a_pipeline(self, settings, tiny_model):
        assert "UNet2DConditionModel" in self.refused(settings, tiny_model / "unet")

    def test_with_weights_of_another_network(self, settings, copied, network_folder):
        shutil.copy(network_folder("vit") / "model.safetensors", copied)
        assert str(copied) in self.refused(settings, copied)

    def test_with_damaged_weights(self, settings, copied):
        whole = (copied / "model.safetensors").read_bytes()
        for damaged in (b"", b"nothing", b"\xff" * 8 + whole[8:], whole[:8] + b"xxxx" + whole[12:], whole[:-100]):
            (copied / "model.safetensors").write_bytes(damaged)
            with pytest.raises(ModelError, match=r"model\.safetensors"):
                settings_model(settings(model=str(copied), taps=("block0",)))

    def test_with_code_of_its_own(self, settings, copied):
        facts = json.loads((copied / "config.json").read_text())
        facts |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
        (copied / "config.json").write_text(json.dumps(facts))
        (copied / "mine.py").write_text("raise SystemExit('this must never run')")
        assert str(copied) in self.refused(settings, copied)

    def test_with_a_patch_larger_than_the_image(self, settings, copied):
        facts = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**facts, "patch_size": 112, "image_size": 224}))
        message = self.refused(settings, copied, weights="random", image_size=(100, 180))
        assert "112" in message
        assert "image_size" in message

    def test_that_is_no_network_of_images(self, settings, copied):
        facts = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        (copied / "config.json").write_text(json.dumps(facts))
        message = self.refused(settings, copied, weights="random")
        assert "bert" in message
        assert "input_ids" in message

    def test_with_settings_of_diffusion_models(self, settings, copied, tiny_model):
        assert "timestep" in self.refused(settings, copied, timestep=200)
        assert "unet" in self.refused(settings, copied, unet=str(tiny_model / "unet"))
