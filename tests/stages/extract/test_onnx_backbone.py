"""A network in an ONNX file gives what the torch network gives that it was exported from; bad files are refused."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from xd3d.errors import BackendError, ModelError
from xd3d.stages.extract.backbones import open_backbone, tap_specs, with_default_taps
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.settings import DEFAULT_TAPS

SIZE = (100, 180)


def pictures(count, size=SIZE, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, *size), dtype=np.uint8))


@pytest.fixture
def load(settings):
    def make(folder, taps=("shallow", "deep", "rgb"), **changes):
        chosen = settings(model=str(folder), taps=taps, **changes)
        return open_backbone(settings_model(chosen), chosen, torch.device("cpu"))

    return make


@pytest.fixture
def copied(network_folder, tmp_path):
    return shutil.copytree(network_folder("onnx"), tmp_path / "net")


def describe(folder, **changes):
    """Change the description; None leaves a key out."""
    file = folder / "net.yaml"
    facts = {**yaml.safe_load(file.read_text()), **changes}
    file.write_text(yaml.safe_dump({key: value for key, value in facts.items() if value is not None}))


def write_graph(folder, nodes, *, batch="n", outputs=(("shallow", 4),), sides=("h", "w"), weights=()):
    """An ONNX file made node by node, with a description of its outputs: name, stride."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, *sides])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name, _ in outputs],
        list(weights),
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(network, str(folder / "net.onnx"))
    taps = {name: {"stride": stride} for name, stride in outputs}
    facts = {"input": "images", "mean": [0.5] * 3, "std": [0.5] * 3, "taps": taps}
    (folder / "net.yaml").write_text(yaml.safe_dump(facts))
    return folder


POOL = helper.make_node("AveragePool", ["images"], ["shallow"], kernel_shape=[4, 4], strides=[4, 4])


@pytest.mark.parametrize("size", [SIZE, (97, 65), (64, 128)])
def test_features_equal_the_exported_network(size, load, network_folder, tiny_networks):
    torch.manual_seed(5)
    network = tiny_networks.ConvNet().eval()
    images = pictures(2, size)
    values = images.numpy() / 255
    values = (values - np.reshape(tiny_networks.MEAN, (3, 1, 1))) / np.reshape(tiny_networks.STD, (3, 1, 1))
    sides = ((0, 0), (0, 0), (0, -size[0] % 8), (0, -size[1] % 8))
    padded = torch.from_numpy(np.pad(values, sides, mode="edge").astype(np.float32))
    with torch.no_grad():
        shallow, deep, _ = network(padded)
    backbone = load(network_folder("onnx"), image_size=size)
    maps = backbone(images, ["a", "b"])
    for tap, expected in (("shallow", shallow), ("deep", deep)):
        spec = backbone.specs[tap]
        torch.testing.assert_close(maps[tap], expected[..., : spec.height, : spec.width], rtol=1e-4, atol=1e-4)


def test_every_described_output_is_kept_by_default(settings, network_folder):
    chosen = settings(model=str(network_folder("onnx")), taps=DEFAULT_TAPS)
    assert with_default_taps(settings_model(chosen), chosen).taps == ("shallow", "deep", "rgb")


def test_a_tap_may_have_a_name_of_its_own(load, copied):
    describe(copied, taps={"late": {"stride": 8, "output": "deep"}})
    assert load(copied, ("late",))(pictures(1), ["a"])["late"].shape[1] == 8


def test_a_file_for_one_image_at_a_time_is_run_that_way(load, network_folder, tmp_path, tiny_networks):
    fixed = tiny_networks.write_onnx(tmp_path / "one", batch=False)
    images = pictures(3)
    found, expected = load(fixed)(images, ["a", "b", "c"]), load(network_folder("onnx"))(images, ["a", "b", "c"])
    torch.testing.assert_close(found["deep"], expected["deep"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [3, -1])
def test_a_file_that_promises_any_batch_and_works_for_one_is_run_one_by_one(channels, load, tmp_path):
    """A reshape to a batch of 1 fails for two images, or joins them into one where it leaves the channels open."""
    to = helper.make_tensor("to", TensorProto.INT64, [4], [1, channels, 25, 45])
    joined = helper.make_node("Reshape", ["pooled", "to"], ["shallow"])
    pool = helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4])
    backbone = load(write_graph(tmp_path / "net", [pool, joined], weights=[to]), ("shallow",))
    images = pictures(2)
    maps = backbone(images, ["a", "b"])["shallow"]
    assert maps.shape == (2, 3, 25, 45)
    means = torch.nn.functional.avg_pool2d(images.float(), 4) / 255
    torch.testing.assert_close(maps, (means - 0.5) / 0.5, rtol=1e-4, atol=1e-4)


def test_data_beside_the_file_are_read(load, network_folder, tmp_path):
    folder = tmp_path / "external"
    shutil.copytree(network_folder("onnx"), folder)
    network = onnx.load(str(folder / "net.onnx"))
    save = {"save_as_external_data": True, "all_tensors_to_one_file": True, "size_threshold": 0}
    onnx.save_model(network, str(folder / "net.onnx"), location="weights.bin", **save)
    images = pictures(1)
    found, expected = load(folder)(images, ["a"]), load(network_folder("onnx"))(images, ["a"])
    torch.testing.assert_close(found["deep"], expected["deep"])


class TestBadFiles:
    def refused(self, settings, folder, taps=("shallow",), **changes):
        chosen = settings(model=str(folder), taps=taps, **changes)
        with pytest.raises(ModelError) as error:
            tap_specs(settings_model(chosen), chosen)
        return str(error.value)

    @pytest.mark.parametrize("location", ["../weights.bin", "/etc/weights.bin", "inner/weights.bin"])
    def test_with_data_outside_of_its_folder(self, location, settings, copied):
        network = onnx.load(str(copied / "net.onnx"))
        tensor = network.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (copied / "net.onnx").write_bytes(network.SerializeToString())
        (copied.parent / "weights.bin").write_bytes(bytes(10_000))
        message = self.refused(settings, copied)
        assert location in message
        assert tensor.name in message

    def test_with_data_behind_a_link_out_of_its_folder(self, settings, copied):
        network = onnx.load(str(copied / "net.onnx"))
        save = {"save_as_external_data": True, "all_tensors_to_one_file": True, "size_threshold": 0}
        onnx.save_model(network, str(copied / "net.onnx"), location="weights.bin", **save)
        (copied / "weights.bin").rename(copied.parent / "elsewhere.bin")
        (copied / "weights.bin").symlink_to(copied.parent / "elsewhere.bin")
        assert "weights.bin" in self.refused(settings, copied)

    def test_with_missing_data(self, settings, copied):
        network = onnx.load(str(copied / "net.onnx"))
        save = {"save_as_external_data": True, "all_tensors_to_one_file": True, "size_threshold": 0}
        onnx.save_model(network, str(copied / "net.onnx"), location="weights.bin", **save)
        (copied / "weights.bin").unlink()
        assert "weights.bin" in self.refused(settings, copied)

    def test_with_an_output_that_is_no_map(self, settings, copied):
        describe(copied, taps={"vector": {"stride": 8}})
        message = self.refused(settings, copied, ("vector",))
        assert "vector" in message
        assert "5]" in message

    @pytest.mark.parametrize(
        ("node", "facts"),
        [
            (helper.make_node("SequenceConstruct", ["pooled"], ["shallow"]), "list"),
            (helper.make_node("Cast", ["pooled"], ["shallow"], to=TensorProto.INT8), "int8 [2, 3, 25, 45]"),
            (helper.make_node("Slice", ["pooled", "zero", "zero", "one"], ["shallow"]), "[2, 0, 25, 45]"),
            (helper.make_node("Transpose", ["pooled"], ["shallow"], perm=[0, 2, 3, 1]), "channels last"),
        ],
    )
    def test_with_an_output_of_another_kind(self, node, facts, settings, tmp_path):
        pool = helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4])
        bounds = [
            helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in (("zero", 0), ("one", 1))
        ]
        folder = write_graph(tmp_path / "net", [pool, node], weights=bounds)
        network = onnx.load(str(folder / "net.onnx"))
        network.graph.output[0].ClearField("type")
        onnx.save(network, str(folder / "net.onnx"))
        message = self.refused(settings, folder)
        assert "shallow" in message
        assert facts in message

    def test_for_pictures_with_channels_last(self, settings, tmp_path):
        folder = write_graph(tmp_path / "net", [POOL])
        network = onnx.load(str(folder / "net.onnx"))
        dimensions = network.graph.input[0].type.tensor_type.shape.dim
        dimensions[1].dim_param, dimensions[3].dim_value = "h", 3
        onnx.save(network, str(folder / "net.onnx"))
        assert "[images, 3, height, width]" in self.refused(settings, folder)

    def test_that_are_pointers_of_git_lfs(self, settings, copied):
        (copied / "net.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
        assert "git lfs pull" in self.refused(settings, copied)

    def test_with_another_stride(self, settings, copied):
        describe(copied, taps={"shallow": {"stride": 2}})
        message = self.refused(settings, copied)
        assert "25x45" in message
        assert "50x90" in message

    def test_with_an_output_or_input_that_is_not_there(self, settings, copied):
        describe(copied, taps={"shalow": {"stride": 4}})
        assert "shallow" in self.refused(settings, copied, ("shalow",))
        describe(copied, taps={"shallow": {"stride": 4}}, input="image")
        assert "'images'" in self.refused(settings, copied)

    def test_for_a_batch_of_another_size(self, settings, tmp_path):
        assert "4 images" in self.refused(settings, write_graph(tmp_path / "net", [POOL], batch=4))

    def test_for_pictures_of_another_size(self, settings, tmp_path):
        folder = write_graph(tmp_path / "net", [POOL], sides=(224, 224))
        assert "[224, 224]" in self.refused(settings, folder)
        chosen = settings(model=str(folder), taps=("shallow",), image_size=(224, 224))
        assert tap_specs(settings_model(chosen), chosen)["shallow"].extent == (56, 56)

    def test_for_another_type_of_pictures(self, settings, tmp_path):
        folder = write_graph(tmp_path / "net", [POOL])
        network = onnx.load(str(folder / "net.onnx"))
        network.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
        onnx.save(network, str(folder / "net.onnx"))
        assert "images" in self.refused(settings, folder)

    def test_with_a_stride_larger_than_the_image(self, settings, copied):
        describe(copied, multiple=128)
        message = self.refused(settings, copied)
        assert "128" in message
        assert "image_size" in message

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"mean": None}, "mean"),
            ({"mean": [0.5]}, "mean"),
            ({"std": [0.5, 0, 0.5]}, "std"),
            ({"mean": [123.7, 116.3, 103.5]}, "123.7"),
            ({"taps": {}}, "taps"),
            ({"taps": {"deep": {}}}, "stride"),
            ({"taps": {"a/b": {"stride": 4}}}, "a/b"),
            ({"colour": "bgr"}, "colour"),
        ],
    )
    def test_with_a_description_that_lacks_something(self, changes, named, settings, copied):
        describe(copied, **changes)
        message = self.refused(settings, copied)
        assert "net.yaml" in message
        assert named in message

    def test_without_a_description(self, settings, copied):
        (copied / "net.yaml").unlink()
        assert "net.yaml" in self.refused(settings, copied)

    def test_that_are_no_networks(self, settings, copied):
        (copied / "net.onnx").write_bytes(b"nothing")
        assert "net.onnx" in self.refused(settings, copied)
        (copied / "net.yaml").write_text("taps: [")
        assert "net.yaml" in self.refused(settings, copied)

    def test_in_another_precision(self, settings, copied):
        chosen = settings(model=str(copied), taps=("shallow",), dtype="bfloat16")
        with pytest.raises(ModelError, match="float32"):
            tap_specs(settings_model(chosen), chosen)

    def test_without_onnxruntime(self, settings, copied, monkeypatch):
        import builtins

        real = builtins.__import__

        def lacking(name, *args, **options):
            if name == "onnxruntime":
                raise ImportError("No module named 'onnxruntime'", name="onnxruntime")
            return real(name, *args, **options)

        monkeypatch.setattr(builtins, "__import__", lacking)
        chosen = settings(model=str(copied), taps=("shallow",))
        with pytest.raises(BackendError, match=r"xd3d\[onnx\]"):
            tap_specs(settings_model(chosen), chosen)


@pytest.mark.slow
def test_a_network_trained_on_photographs_equals_its_export(load, tmp_path, monkeypatch):
    """EfficientNet-Lite 2 with its ImageNet weights, of the extra ``benchmark``."""
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    efficientnet = importlib.import_module("efficientnet")
    folder, images = efficientnet.export(tmp_path / "lite", (128, 192)), pictures(2, (128, 192))
    taps = tuple(f"stride{stride}" for stride in efficientnet.STRIDES)
    maps = load(folder, taps, image_size=(128, 192))(images, ["a", "b"])
    mean, std = efficientnet.HALF
    with torch.no_grad():
        stock = efficientnet.Taps()((images / 255 - mean[0]) / std[0])
    for tap, expected in zip(taps, stock, strict=True):
        torch.testing.assert_close(maps[tap], expected, rtol=1e-4, atol=1e-4)
