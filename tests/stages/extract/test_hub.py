"""Models come from a hub whole and checked, go on where a transfer broke, and nothing reaches for it when offline."""

import fcntl
import hashlib
import importlib.util
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from xd3d.errors import ModelError
from xd3d.stages.extract import catalogue, hub
from xd3d.stages.extract.catalogue import PublishedFile, fetch_model, find_local, known_models
from xd3d.stages.extract.models import resolve_model, resolve_unet

UNET = "unet/diffusion_pytorch_model.safetensors"
ID = "some/model"


def serving():
    spec = importlib.util.spec_from_file_location("fake_hub", Path(__file__).with_name("fake_hub.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.serving()


@pytest.fixture
def fake(tiny_model, tmp_path, monkeypatch):
    """A hub with the tiny model, an empty download folder, and a client that looks nowhere else."""
    from huggingface_hub import constants

    with serving() as running:
        running.add(ID, tiny_model)
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        yield running


@pytest.fixture
def no_network(monkeypatch):
    """Fail the test at any attempt to connect or to look up a host."""

    def refuse(*_args, **_kwargs):
        pytest.fail("went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_fetched_model_is_the_published_one_and_is_fetched_once(fake, tiny_model):
    path, files = fetch_model(ID)
    assert files_of(path) == files_of(tiny_model)
    assert {file.file: file.sha256 for file in files} == {
        name: digest(tiny_model / name)
        for name in (UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
    }
    assert {file.checked for file in files} == {"hub"}
    fake.requests.clear()
    assert resolve_model(ID).path == path
    assert fetch_model(ID) == (path, files)
    assert fake.requests == []


def test_files_that_stage_one_does_not_read_stay_on_the_hub(fake):
    fake.repositories[ID] |= {"unet/diffusion_pytorch_model.fp16.safetensors": b"x", "model.ckpt": b"y"}
    path, _ = fetch_model(ID)
    assert not list(path.rglob("*fp16*")) + list(path.rglob("*.ckpt"))


def test_a_transfer_that_breaks_off_resumes_by_itself(fake, tiny_model, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    fake.cut[UNET] = 1000
    path, _ = fetch_model(ID)
    assert fake.sent(UNET) == [0, 1000]
    assert files_of(path) == files_of(tiny_model)


def test_a_fetch_that_was_killed_resumes_from_its_partial_file(fake, tiny_model, tmp_path):
    blobs = tmp_path / "hub/models--some--model/blobs"
    blobs.mkdir(parents=True)
    content = (tiny_model / UNET).read_bytes()
    (blobs / f"{digest(tiny_model / UNET)}.xd3d-partial").write_bytes(content[:2000])
    path, _ = fetch_model(ID)
    assert fake.sent(UNET) == [2000]
    assert (path / UNET).read_bytes() == content
    assert not list(blobs.glob("*partial*"))


def test_a_partial_file_that_is_too_long_is_begun_anew(fake, tiny_model, tmp_path):
    blobs = tmp_path / "hub/models--some--model/blobs"
    blobs.mkdir(parents=True)
    content = (tiny_model / UNET).read_bytes()
    (blobs / f"{digest(tiny_model / UNET)}.xd3d-partial").write_bytes(content + b"<html>")
    path, _ = fetch_model(ID)
    assert fake.sent(UNET) == [0]
    assert (path / UNET).read_bytes() == content


@pytest.mark.usefixtures("fake")
def test_no_other_process_touches_a_download_until_it_is_checked_and_in_place(tmp_path, monkeypatch):
    locked = []

    def hashed(stream, kind):
        for partial in (tmp_path / "hub").rglob("*.xd3d-partial"):
            with partial.open("ab") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked.append(partial)
        return hashlib.file_digest(stream, kind)

    monkeypatch.setattr(hub, "hashlib", SimpleNamespace(file_digest=hashed))
    fetch_model(ID)
    assert len(locked) == 3


def test_a_damaged_transfer_is_named_with_both_digests_and_alone_removed(fake, tiny_model, tmp_path):
    content = (tiny_model / UNET).read_bytes()
    fake.swap[UNET] = damaged = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(ModelError) as refused:
        fetch_model(ID)
    for part in (UNET, digest(tiny_model / UNET), hashlib.sha256(damaged).hexdigest(), "fetch it again"):
        assert part in str(refused.value)
    assert find_local(ID) is None
    kept = {path.name for path in (tmp_path / "hub").rglob("*") if path.is_file()}
    assert digest(tiny_model / "text_encoder/model.safetensors") in kept
    assert digest(tiny_model / UNET) not in kept
    fake.swap.clear()
    fake.requests.clear()
    path, _ = fetch_model(ID)
    assert files_of(path) == files_of(tiny_model)
    assert fake.sent("text_encoder/model.safetensors") == []


def test_other_weights_under_a_known_name_are_refused_before_they_are_downloaded(fake, monkeypatch, tiny_model):
    known = {UNET: PublishedFile(7, "0" * 64)}
    monkeypatch.setitem(catalogue.HUB_NAMES, "sd21", ID)
    monkeypatch.setitem(catalogue._FILES, "sd21", known)
    with pytest.raises(ModelError, match=rf"{UNET}.*sha256 {digest(tiny_model / UNET)}, expected {'0' * 64}"):
        fetch_model("sd21")
    assert fake.requests == []
    monkeypatch.setitem(catalogue._FILES, "sd21", {UNET: PublishedFile(7, digest(tiny_model / UNET))})
    _, files = fetch_model("sd21")
    assert {file.file: file.checked for file in files}[UNET] == "published"


def test_a_copy_from_earlier_that_was_damaged_since_is_found(fake, monkeypatch):
    path, _ = fetch_model(ID)
    blob = (path / UNET).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelError, match=rf"{UNET}.*sha256"):
        fetch_model(ID)


def test_one_file_of_unet_weights_is_fetched_by_its_name(fake, tiny_model, tmp_path, monkeypatch):
    folder = tmp_path / "cleandift"
    folder.mkdir()
    shutil.copy(tiny_model / UNET, folder / "clean_unet.safetensors")
    shutil.copy(tiny_model / UNET, folder / "other.safetensors")
    fake.add("clean/dift", folder)
    monkeypatch.setitem(catalogue.UNET_NAMES, "cleandift-sd21", "clean/dift:clean_unet.safetensors")
    path = resolve_unet("cleandift-sd21")
    assert path.read_bytes() == (tiny_model / UNET).read_bytes()
    assert not list((tmp_path / "hub").rglob("other*"))
    assert {model.name: model.path for model in known_models()}["cleandift-sd21"] == path
    assert resolve_unet("clean/dift:clean_unet.safetensors") == path
    with pytest.raises(ModelError, match=r"missing\.safetensors"):
        resolve_unet("clean/dift:missing.safetensors")


def test_the_unet_of_a_repository_is_fetched_without_the_rest(fake, tiny_model, tmp_path):
    assert files_of(resolve_unet(ID)) == files_of(tiny_model / "unet")
    assert not list((tmp_path / "hub").rglob("vae"))
    fake.add("only/unet", tiny_model / "unet")
    assert files_of(resolve_unet("only/unet")) == files_of(tiny_model / "unet")


@pytest.mark.usefixtures("fake")
def test_an_unknown_repository_is_named():
    with pytest.raises(ModelError, match="'no/such'"):
        fetch_model("no/such")


@pytest.mark.usefixtures("no_network")
def test_offline_nothing_reaches_for_the_network(fake, settings, make_index, monkeypatch):
    from xd3d.stages.extract.online import OnlineExtractor

    with pytest.raises(ModelError, match=r"extract\.offline.*set.*xd3d"):
        OnlineExtractor(index=make_index(1), settings=settings(model=ID, offline=True))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for ask in (resolve_model, fetch_model, lambda name: resolve_unet(f"{name}:x.safetensors")):
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
            ask(ID)


def test_a_model_on_this_machine_needs_no_network(fake, settings, make_index, request):
    from xd3d.stages.extract.online import OnlineExtractor

    fetch_model(ID)
    request.getfixturevalue("no_network")
    for model in (ID, settings().model):
        source = OnlineExtractor(index=make_index(1), settings=settings(model=model, offline=True))
        assert source.read([0]).geometry.any()
    path, files = fetch_model(ID, offline=True)
    assert (path, len(files)) == (find_local(ID), 3)
    assert catalogue.find_local("sd14") is None


def test_a_hub_that_is_gone_is_reported_from_a_damaged_model(fake, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "HUB_TIMEOUT", 0.5)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    with pytest.raises(ModelError, match=r"could not be fetched.*give a folder"):
        fetch_model(ID)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_token_goes_to_the_hub_and_to_no_server_whose_name_begins_alike(fake, monkeypatch, elsewhere):
    import huggingface_hub
    from huggingface_hub import constants, file_download

    sent = []

    def facts(url, **_):
        place = url.replace(fake.address, f"{fake.address}.evil.com") if elsewhere else url
        return SimpleNamespace(location=place, size=1)

    def transfer(url, stream, *, headers, **_):
        sent.append((url, headers.get("Authorization")))
        raise OSError("enough was seen")

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", facts)
    monkeypatch.setattr(file_download, "http_get", transfer)
    assert fake.address == constants.ENDPOINT
    with pytest.raises(ModelError, match="enough was seen"):
        fetch_model(ID)
    ((url, authorization),) = sent
    assert url.startswith(fake.address)
    assert authorization == (None if elsewhere else "Bearer secret")


@pytest.mark.parametrize("name", ["dinov2-small", "someone/dino"])
def test_a_network_of_transformers_is_fetched_by_name_or_hub_id(name, fake, network_folder):
    hub_id = catalogue.VISION_NAMES.get(name, name)
    fake.add(hub_id, network_folder("dinov2"))
    fake.repositories[hub_id] |= {"pytorch_model.bin": b"x", "onnx/model.onnx": b"y"}
    path, files = fetch_model(name)
    assert files_of(path) == files_of(network_folder("dinov2"))
    assert [(file.file, file.checked) for file in files] == [("model.safetensors", "hub")]
    found = resolve_model(name)
    assert (found.path, found.kind) == (path, "transformers")


def test_a_repository_behind_a_licence_says_where_to_accept_it(fake, network_folder):
    hub_id = catalogue.VISION_NAMES["dinov3-base"]
    fake.add(hub_id, network_folder("dinov3"))
    fake.gated.add(hub_id)
    with pytest.raises(ModelError) as error:
        fetch_model("dinov3-base")
    assert f"https://huggingface.co/{hub_id}" in str(error.value)
    assert "HF_TOKEN" in str(error.value)
