"""A cache of several networks: it grows by a network, is resumed after a kill, and reads as one source of features."""

import hashlib
import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import zarr
from xd3d.cache.network_parts import NetworksReader, check_parts, describe_networks
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import named_arrays
from xd3d.errors import CacheError, CacheMismatchError, ConfigError, DataError, ModelError
from xd3d.stages.extract import backbones, images, network_parts
from xd3d.stages.extract.forecast import forecast
from xd3d.stages.extract.job import extract_features
from xd3d.stages.extract.network_parts import NetworksPlan, extract_networks
from xd3d.stages.extract.online import OnlineExtractor
from xd3d.stages.extract.settings import DEFAULT_TAPS

SMALL = {"batch_size": 1, "shard_mb": 1, "agents": {"count": 6, "rounds": 2}}


@pytest.fixture
def folder(network_folder, tmp_path):
    """A network's folder under the plain name that its taps have."""

    def make(name):
        link = tmp_path / "networks" / ("sd" if name == "diffusers" else name)
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(network_folder(name))
        return str(link)

    return make


@pytest.fixture
def several(settings, folder):
    """Call it with the names of networks for the settings of a cache of them."""

    def make(*names, taps=None, **changes):
        own = {"diffusers": ("sd/up1", "sd/up2"), "dinov2": ("dinov2/block1",), "onnx": ("onnx/deep",)}
        chosen = taps or (*(tap for name in names for tap in own[name]), "rgb")
        return settings(models=tuple(map(folder, names)), taps=chosen, **{**SMALL, **changes})

    return make


def contents(path):
    """Digest and time of change of every file of a cache, but for locks."""
    return {
        str(file.relative_to(path)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "writer.lock" and "locks" not in file.parts
    }


def digests(path):
    return {name: digest for name, (digest, _) in contents(path).items()}


def opened(index, settings, path):
    plan = NetworksPlan(index=index, settings=settings, path=path, reading=True)
    return NetworksReader(path, **plan.fingerprint)


def test_maps_are_those_of_a_cache_of_one_network(make_index, several, settings, folder, tmp_path):
    index, path = make_index(), tmp_path / "cache"
    done = extract_networks(index, several("diffusers", "dinov2", "onnx"), path)
    assert (done.images, done.done, done.failed, done.cache) == (3, 3, 0, path)
    reader = opened(index, several("diffusers", "dinov2", "onnx"), path)
    assert [*reader.taps] == ["sd/up1", "sd/up2", "dinov2/block1", "onnx/deep", "rgb"]
    found = reader.read([2, 0])
    for name, taps in (("diffusers", ("up1", "up2")), ("dinov2", ("block1",)), ("onnx", ("deep",))):
        alone = tmp_path / f"alone-{name}"
        extract_features(index, settings(model=folder(name), taps=(*taps, "rgb"), **SMALL), alone)
        expected, label = FeatureReader(alone).read([2, 0]), "sd" if name == "diffusers" else name
        for tap in taps:
            np.testing.assert_array_equal(found.maps[f"{label}/{tap}"], expected.maps[tap])
            group = zarr.open_group(path, mode="r")
            np.testing.assert_array_equal(group[f"features/{label}/{tap}"][[2, 0]], expected.maps[tap])
        np.testing.assert_array_equal(found.maps["rgb"], expected.maps["rgb"])


@pytest.mark.parametrize("profile", ["exact", "compact"])
def test_agents_summarise_the_maps_of_all_networks_as_without_a_cache(profile, make_index, several, tmp_path):
    index, chosen = make_index(), several("diffusers", "dinov2", profile=profile)
    extract_networks(index, chosen, tmp_path / "cache")
    found = opened(index, chosen, tmp_path / "cache").read([0, 1, 2])
    online = OnlineExtractor(index=index, settings=chosen)
    computed = online.read([0, 1, 2])
    assert [*online.taps] == [*found.maps]
    for name, array in named_arrays(found).items():
        np.testing.assert_array_equal(array, named_arrays(computed)[name], err_msg=name)
    np.testing.assert_allclose(found.geometry[..., 0].sum(1), 1, rtol=1e-4)


def test_a_network_is_added_without_computing_the_others_again(make_index, several, tmp_path, monkeypatch):
    index, path = make_index(), tmp_path / "cache"
    extract_networks(index, several("diffusers"), path)
    before = contents(path)
    real = backbones.open_backbone

    def only_dino(model, settings, device):
        assert model.kind == "transformers", "the first network is loaded again"
        return real(model, settings, device)

    with monkeypatch.context() as patch:
        for module in (backbones, network_parts, __import__("xd3d.stages.extract.extractor", fromlist=["x"])):
            if hasattr(module, "open_backbone"):
                patch.setattr(module, "open_backbone", only_dino)
        extract_networks(index, several("diffusers", "dinov2"), path)
    after = contents(path)
    assert {name: after[name] for name in before} == before
    at_once = tmp_path / "at once"
    extract_networks(index, several("diffusers", "dinov2"), at_once)
    assert {name: digest for name, digest in digests(path).items() if name in digests(at_once)} == digests(at_once)
    for names in (("diffusers",), ("diffusers", "dinov2")):
        assert opened(index, several(*names), path).read([0]).geometry.shape == (1, 6, 5)


@pytest.mark.parametrize(
    "after", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(4, marks=pytest.mark.slow), 5, 7]
)
def test_a_run_that_is_killed_is_resumed_to_the_same_bytes(after, make_index, several, tmp_path, monkeypatch):
    index, chosen = make_index(frames=3), several("diffusers", "dinov2", shard_mb=1)
    whole, path = tmp_path / "whole", tmp_path / "cache"
    extract_networks(index, several("diffusers"), path)
    extract_networks(index, several("diffusers"), whole)
    extract_networks(index, chosen, whole)
    real, read = images.PictureSource.read, []

    def interrupted(self, rows):
        read.append(rows)
        if len(read) > after:
            raise KeyboardInterrupt
        return real(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(images.PictureSource, "read", interrupted)
        if after < 6:
            with pytest.raises(KeyboardInterrupt):
                extract_networks(index, chosen, path)
        else:
            extract_networks(index, chosen, path)
    extract_networks(index, chosen, path)
    assert digests(path) == digests(whole)


def test_an_image_that_cannot_be_decoded_fails_in_every_part(make_index, several, tmp_path):
    index, path = make_index(), tmp_path / "cache"
    (index.root / str(index.images.path[1])).write_bytes(b"no picture")
    done = extract_networks(index, several("diffusers", "dinov2"), path)
    assert (done.done, done.failed) == (2, 1)
    assert forecast(index, several("diffusers", "dinov2"), path).left == 0
    assert forecast(index, several("diffusers", "dinov2"), path, retry_failed=True).left == 1
    reader = opened(index, several("diffusers", "dinov2"), path)
    reader.require([0, 2])
    with pytest.raises(CacheError, match=str(index.images.key[1])):
        reader.require([0, 1])


def test_the_cache_lists_its_networks_and_is_checked_part_by_part(make_index, several, tmp_path):
    index, path = make_index(), tmp_path / "cache"
    extract_networks(index, several("diffusers", "dinov2"), path)
    found = describe_networks(path)
    json.dumps(found)
    assert found["networks"].keys() == {"sd", "dinov2"}
    assert found["networks"]["dinov2"]["taps"] == ["block1"]
    assert (found["images"], found["done"], found["failed"]) == (3, 3, 0)
    assert found["bytes"] == sum(facts["bytes"] for facts in found["arrays"].values())
    assert found["arrays"]["features/sd/up2"]["shape"][0] == 3
    assert check_parts(path)["ok"]
    shard = next(file for file in (path / "features/dinov2/block1/c").rglob("*") if file.is_file())
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    result = check_parts(path)
    assert not result["ok"]
    assert result["damaged"][0]["file"].startswith("features/dinov2/block1")
    with pytest.raises(CacheError, match="several networks"):
        FeatureReader(path)


def test_a_network_that_is_not_there_is_named_with_the_command_that_adds_it(make_index, several, tmp_path):
    index, path = make_index(), tmp_path / "cache"
    extract_networks(index, several("diffusers"), path)
    with pytest.raises(CacheError, match=r"'dinov2'.*xd3d extract-features --dataset pictures"):
        opened(index, several("diffusers", "dinov2"), path)
    with pytest.raises(CacheError, match=r"up3.*'?sd'?|'sd'.*up3"):
        opened(index, several("diffusers", taps=("sd/up3",)), path)


def test_fewer_taps_than_a_part_holds_are_enough(make_index, several, tmp_path):
    index, path = make_index(), tmp_path / "cache"
    extract_networks(index, several("diffusers"), path)
    fewer = several("diffusers", taps=("sd/up1", "rgb"))
    before = contents(path / "features")
    extract_networks(index, fewer, path)
    assert contents(path / "features") == before
    assert [*opened(index, fewer, path).taps] == ["sd/up1", "rgb"]


def test_a_part_of_other_weights_is_refused(make_index, several, tmp_path):
    index, path = make_index(), tmp_path / "cache"
    extract_networks(index, several("dinov2"), path)
    with pytest.raises(CacheMismatchError, match="model: expected"):
        extract_networks(index, several("dinov2", weights="random"), path)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"image_size": (128, 192)}, r"image_size: expected \[128,192\], found \[100,180\]"),
        ({"decoding": "scaled"}, "decoding: .*scaled"),
        ({"profile": "compact"}, "profile: .*compact"),
    ],
)
def test_a_part_of_other_pictures_or_precision_is_refused_before_any_network_runs(
    change, facts, missing, make_index, several, tmp_path, monkeypatch
):
    index, path = make_index(), tmp_path / "cache"
    extract_networks(index, several("dinov2"), path)
    before = contents(path)
    chosen = several("onnx", "dinov2", **change)
    if missing:  # the part stands for its network, which is not on this machine
        monkeypatch.setattr(
            network_parts, "missing_models", lambda settings: {"model": "x"} if "dino" in settings.model else {}
        )
    with pytest.raises(CacheMismatchError, match=rf"'dinov2'[\s\S]*{facts}"):
        extract_networks(index, chosen, path)
    assert contents(path) == before


def fault_of(name, folder, tmp_path):
    copied = shutil.copytree(folder(name), tmp_path / "copied" / name)
    if name == "dinov2":
        (copied / "model.safetensors").write_bytes((copied / "model.safetensors").read_bytes()[:500])
    else:
        description = copied / "net.yaml"
        description.write_text(description.read_text().replace("stride: 8", "stride: 16"))
    return str(copied)


@pytest.mark.parametrize(("name", "facts"), [("dinov2", "model.safetensors"), ("onnx", "14x24"), ("vit", "block77")])
def test_a_fault_of_the_second_network_is_found_before_the_first_runs(
    name, facts, make_index, several, folder, tmp_path
):
    broken = folder("vit") if name == "vit" else fault_of(name, folder, tmp_path)
    tap = {"dinov2": "dinov2/block1", "onnx": "onnx/deep", "vit": "vit/block77"}[name]
    chosen = several("diffusers").model_copy(update={"models": (folder("diffusers"), broken), "taps": ("sd/up1", tap)})
    with pytest.raises(ModelError, match=facts):
        extract_networks(make_index(), chosen, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_frames_with_few_images_or_none_keep_their_rows(make_index, several, tmp_path):
    index, chosen = make_index(frames=4, cameras=2), several("dinov2", "onnx")
    kept = np.array([0, 1, 2, 4, 5])  # the second frame lacks an image, the last one both
    images = index.images
    fewer = replace(images, **{field.name: getattr(images, field.name)[kept] for field in fields(images)})
    some = replace(index, images=fewer)
    (index.root / str(fewer.path[1])).unlink()
    done = extract_networks(some, chosen, tmp_path / "some")
    assert (done.images, done.done, done.failed) == (5, 4, 1)
    extract_networks(index, chosen, tmp_path / "all")
    found = opened(some, chosen, tmp_path / "some").read([4, 0]).maps["dinov2/block1"]
    np.testing.assert_array_equal(found, opened(index, chosen, tmp_path / "all").read([5, 0]).maps["dinov2/block1"])
    none = replace(
        index, images=replace(images, **{each.name: getattr(images, each.name)[:0] for each in fields(images)})
    )
    with pytest.raises(DataError, match="no images"):
        extract_networks(none, chosen, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_default_taps_are_those_of_each_network(make_index, several, tmp_path):
    index, path, chosen = make_index(), tmp_path / "cache", several("diffusers", "dinov2", taps=DEFAULT_TAPS)
    extract_networks(index, chosen, path)
    taps = [*opened(index, chosen, path).taps]
    assert taps == ["sd/up0", "sd/up1", "sd/up2", "sd/up3", "dinov2/block2", "rgb"]


@pytest.mark.parametrize(
    ("agents", "facts"),
    [
        ({"grid": "sd/up9"}, r"extract\.agents\.grid names 'sd/up9'.*dinov2/block2"),
        ({"tap_weights": {"other": 2.0}}, r"extract\.agents\.tap_weights names 'other'"),
        ({"tap_weights": {"dinov2": 0.0}}, "every tap weight 0"),
    ],
)
def test_agents_name_taps_that_the_networks_have_by_default(agents, facts, make_index, several, tmp_path):
    chosen = several("dinov2", taps=DEFAULT_TAPS, agents={**SMALL["agents"], **agents})
    with pytest.raises(ConfigError, match=facts):
        extract_networks(make_index(), chosen, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_cache_of_codes_is_read_like_any_other(make_index, several, tmp_path):
    index, chosen = make_index(), several("diffusers", "dinov2", profile="compact")
    extract_networks(index, chosen, tmp_path / "cache")
    found = opened(index, chosen, tmp_path / "cache").read([1])
    assert found.maps["dinov2/block1"].dtype == np.uint8
    assert found.scales["features/dinov2/block1"].shape == (1, 2, 32)
    assert found.scales["agents/sd/up2"].dtype == np.float16


@pytest.mark.parametrize(
    ("weights", "alone"), [({"sd": 0.0}, ("dinov2",)), ({"sd/up1": 0.0, "sd/up2": 0.0}, ("dinov2",))]
)
def test_agents_may_be_grouped_by_one_of_the_networks(weights, alone, make_index, several, tmp_path):
    index = make_index()
    both = several("diffusers", "dinov2", agents={**SMALL["agents"], "tap_weights": weights, "grid": "dinov2/block1"})
    one = several(*alone, agents={**SMALL["agents"], "grid": "dinov2/block1"})
    for chosen in (both, one):
        extract_networks(index, chosen, tmp_path / "cache")
    found, expected = (opened(index, chosen, tmp_path / "cache").read([0, 1]) for chosen in (both, one))
    np.testing.assert_array_equal(found.assignment, expected.assignment)
    np.testing.assert_array_equal(found.agents["dinov2/block1"], expected.agents["dinov2/block1"])
    assert "sd/up2" in found.agents
