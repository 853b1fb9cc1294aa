"""A pushed cache is pulled whole, byte for byte, from every kind of place; what is there is not sent again."""

import hashlib
import json
import shlex
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xd3d.cache.maintenance import diff_caches
from xd3d.cache.network_parts import agents_part, check_parts, create_networks, describe_networks, network_part
from xd3d.cache.reader import FeatureReader
from xd3d.cache.schema import TapSpec
from xd3d.cache.stored import StoredRows
from xd3d.cache.stores.local import LocalStore
from xd3d.cache.verify import cache_info, verify_cache
from xd3d.cache.writer import CacheWriter
from xd3d.errors import CacheError, CacheMismatchError, ConfigError, DiskSpaceError, StoreError
from xd3d.fingerprint import fingerprint_digest
from xd3d.pipeline.caches import ImageChoice
from xd3d.pipeline.transfer.commands import pull, push
from xd3d.pipeline.transfer.remotes import open_remote

#: The hub's client gives its HTTP library bytes in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PLACES = ["folder", "s3", "hub", "memory"]


def send(workspace, what, place, **options):
    return push(workspace, str(what), place, confirm_licence=True, **options).result


def fetch(workspace, place, **options):
    return pull(workspace, place, **options).result


def manifest_of(place):
    source = open_remote(place, kind="cache", writing=False)
    return json.loads(source.read("xd3d-share.json", source.files()["xd3d-share.json"]))


def rewrite(place, name, content):
    target = open_remote(place, kind="cache", writing=True)
    target.write({name: content})
    target.finish()


@pytest.mark.parametrize("kind", PLACES)
def test_a_pulled_cache_is_the_pushed_one_and_lies_where_commands_look(kind, write_cache, new_place, mine, yours):
    cache, place = write_cache(mine), new_place(kind)
    done = send(mine, cache, place)
    assert (done["there"], done["sent"]) == (0, done["bytes"])
    pulled = fetch(yours, place)
    assert pulled["cache"] == str(yours.home / "cache" / cache.name)
    assert (pulled["fetched"], pulled["there"], pulled["images"]) == (pulled["bytes"], 0, 18)
    assert diff_caches(cache, pulled["cache"])["equal"]
    assert verify_cache(Path(pulled["cache"]))["ok"]
    files = manifest_of(place)["files"]
    copies = {name: (Path(pulled["cache"]) / name).read_bytes() for name in files}
    assert files == {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in copies.items()}
    assert not list(Path(pulled["cache"]).rglob("*partial*"))


@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_what_is_there_is_neither_sent_nor_fetched_again(kind, write_cache, new_place, mine, yours):
    cache, place = write_cache(mine), new_place(kind)
    first = send(mine, cache, place)
    again = send(mine, cache, place)
    assert (again["sent"], again["there"]) == (0, first["bytes"])
    pulled = fetch(yours, place)
    again = fetch(yours, place)
    assert (again["fetched"], again["there"]) == (0, pulled["bytes"])


def test_a_cache_that_grew_is_added_to_and_what_the_forecast_said_is_sent(write_cache, new_place, mine, yours):
    cache, place = write_cache(mine, shards=2), new_place("hub")
    send(mine, cache, place)
    assert fetch(yours, place)["images"] < 18
    write_cache(mine)
    forecast = push(mine, cache.name, place, dry_run=True).result
    done = send(mine, cache.name, place)
    assert forecast["sent"] == 0
    assert forecast["there"] > 0
    assert done["sent"] < done["bytes"]
    assert fetch(yours, place)["images"] == 18
    assert diff_caches(cache, yours.home / "cache" / cache.name)["equal"]


@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_chosen_taps_and_images_alone_are_fetched(kind, write_cache, new_place, mine, yours, tmp_path):
    cache, place = write_cache(mine), new_place(kind)
    send(mine, cache, place)
    (tmp_path / "images.txt").write_text("image-0000\nimage-0001\n")
    source = open_remote(place, kind="cache", writing=False)
    asked = []
    type(source).read, read = lambda self, name, size: asked.append(name) or read(self, name, size), type(source).read
    try:
        done = fetch(yours, place, taps=["up1"], images=ImageChoice(images=tmp_path / "images.txt"))
    finally:
        type(source).read = read
    assert {name.split("/c/")[0] for name in asked if "/c/" in name} == {
        *("features/up1", "agents/up1", "agents/geometry", "agents/assignment", "agents/membership")
    }
    assert {name.split("/c/")[1].split("/")[0] for name in asked if "/c/" in name} == {"0"}
    part = Path(done["cache"])
    digest = fingerprint_digest({**cache_fingerprint(cache), "taps": ["up1"], "exported_from": digest_of(cache)})
    assert part.name == f"nuscenes-{digest[:12]}"
    rows = [0, 1]
    assert (FeatureReader(part).read(rows).maps["up1"] == FeatureReader(cache).read(rows).maps["up1"]).all()
    assert verify_cache(part)["ok"]
    assert cache_info(part)["done"] == done["images"] < 18
    with pytest.raises(CacheError, match="image-0017"):
        FeatureReader(part).require([17])


def cache_fingerprint(cache):
    return json.loads((cache / "zarr.json").read_text())["attributes"]["xd3d_cache"]["fingerprint"]


def digest_of(cache):
    return cache_info(cache)["fingerprint"]


def test_chosen_taps_alone_are_pushed_as_an_export_has_them(write_cache, new_place, mine, yours, tmp_path):
    from xd3d.cache.export import export_cache

    cache, place = write_cache(mine), new_place("folder")
    send(mine, cache, place, taps=["up0", "rgb"])
    pulled = fetch(yours, place)
    export_cache(cache, tmp_path / "export", taps=["up0", "rgb"])
    found = diff_caches(tmp_path / "export", pulled["cache"])
    assert not found["fingerprint"]
    assert not any(found["rows"].values())
    with pytest.raises(CacheError, match="'up0'"):
        fetch(yours, place, taps=["up3"])


def test_names_in_options_may_have_spaces_between(write_cache, mine, tmp_path, xd3d):
    done = xd3d("push", str(write_cache(mine)), str(tmp_path / "place"), "--taps", "up0, rgb", XD3D_HOME=str(mine.home))
    assert done.returncode == 0, done.stderr
    assert manifest_of(str(tmp_path / "place"))["facts"]["taps"] == ["up0", "rgb"]


def test_the_command_that_fetches_a_cache_can_be_pasted(write_cache, mine, tmp_path):
    place = str(tmp_path / "of two words")
    said = push(mine, str(write_cache(mine)), place).text.splitlines()[-1]
    assert shlex.split(said)[-3:] == ["xd3d", "pull", place]
    assert f"xd3d pull {shlex.quote(place)}\n" in Path(place, "README.md").read_text()


@pytest.mark.parametrize("kind", ["memory", "hub"])
def test_another_cache_is_replaced_only_when_told(kind, write_cache, new_place, mine, yours):
    first, second, place = write_cache(mine), write_cache(mine, model="4567"), new_place(kind)
    send(mine, first, place)
    with pytest.raises(CacheMismatchError, match='model: expected "4567", found "0123"') as refused:
        send(mine, second, place)
    assert "--replace" in str(refused.value)
    send(mine, second, place, replace=True)
    pulled = Path(fetch(yours, place)["cache"])
    assert pulled.name == second.name
    assert diff_caches(second, pulled)["equal"]
    with pytest.raises(CacheMismatchError, match="--replace"):
        fetch(mine, place, out=str(first))
    fetch(mine, place, out=str(first), replace=True)
    assert diff_caches(second, first)["equal"]


@pytest.fixture
def kill_after(monkeypatch):
    """Context: the process ends after ``count`` files of a folder are deleted."""

    @contextmanager
    def context(count):
        delete, left = LocalStore.delete, iter(range(count))

        def killed(store, key):
            if next(left, None) is None:
                raise KeyboardInterrupt
            delete(store, key)

        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "delete", killed)
            yield

    return context


@pytest.mark.parametrize("deleted", [0, 3])
def test_a_replacement_that_is_killed_while_it_deletes_can_be_repeated(
    deleted, write_cache, mine, yours, tmp_path, kill_after
):
    first, second = write_cache(mine), write_cache(mine, model="4567")
    place, out = str(tmp_path / "place"), str(tmp_path / "out")
    send(mine, first, place)
    fetch(yours, place, out=out)
    with kill_after(deleted), pytest.raises(KeyboardInterrupt):
        send(mine, second, place, replace=True)
    with pytest.raises(CacheMismatchError, match="--replace"):
        send(mine, second, place)
    send(mine, second, place, replace=True)
    with kill_after(deleted), pytest.raises(KeyboardInterrupt):
        fetch(yours, place, out=out, replace=True)
    with pytest.raises(CacheMismatchError, match="--replace"):
        fetch(yours, place, out=out)
    fetch(yours, place, out=out, replace=True)
    assert diff_caches(second, out)["equal"]


def test_a_place_with_other_files_is_left_alone(write_cache, mine, yours, tmp_path):
    cache = write_cache(mine)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("...")
    for told in (False, True):
        with pytest.raises(ConfigError, match=r"thesis\.tex"):
            send(mine, cache, str(tmp_path / "home"), replace=told)
    send(mine, cache, str(tmp_path / "place"))
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        fetch(yours, str(tmp_path / "place"), out=str(tmp_path / "home"), replace=True)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("kind", ["folder", "s3", "hub"])
def test_one_changed_byte_is_found_and_nothing_of_that_file_is_kept(kind, write_cache, new_place, mine, yours):
    cache, place = write_cache(mine), new_place(kind)
    send(mine, cache, place)
    name = "features/up0/c/1/0/0/0"
    content = (cache / name).read_bytes()
    rewrite(place, name, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreError, match=name) as refused:
        fetch(yours, place)
    assert hashlib.sha256(content).hexdigest() in str(refused.value)
    half = yours.home / "cache" / cache.name
    assert not (half / name).exists()
    assert not (half / "zarr.json").exists()
    rewrite(place, name, content)
    assert fetch(yours, place)["there"] > 0
    assert diff_caches(cache, half)["equal"]


def test_a_damaged_cache_is_not_pushed(write_cache, new_place, mine):
    cache, place = write_cache(mine), new_place("folder")
    file = cache / "features/up0/c/1/0/0/0"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheError, match=r"features/up0/c/1/0/0/0.*xd3d cache repair"):
        send(mine, cache, place)
    assert not Path(place).exists()


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/outside", "a/../../outside", "a//b", ".hidden", "c:\\x", "a/.git/x"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(name, write_cache, new_place, mine, yours):
    cache, place = write_cache(mine), new_place("folder")
    send(mine, cache, place)
    manifest = manifest_of(place)
    manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    rewrite(place, "xd3d-share.json", json.dumps(manifest).encode())
    with pytest.raises(StoreError, match="lead out"):
        fetch(yours, place)
    assert not yours.home.exists()


def test_a_link_in_the_target_is_not_written_through(write_cache, new_place, mine, yours, tmp_path):
    cache, place = write_cache(mine), new_place("folder")
    send(mine, cache, place)
    fetch(yours, place)
    local = yours.home / "cache" / cache.name
    (local / "features/up0/c/1/0/0/0").unlink()
    (local / "features/up0/c").rename(tmp_path / "elsewhere")
    (local / "features/up0/c").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="link"):
        fetch(yours, place)
    assert not (tmp_path / "elsewhere/1/0/0/0").exists()


def test_no_path_of_this_machine_is_shared(write_cache, new_place, mine, yours):
    mine.remember_root("nuscenes", mine.home / "my data")
    reason = f"{mine.home}/my data/samples/x.jpg cannot be read (also /other/disk/y.jpg)"
    cache, place = write_cache(mine, fails={3: reason}), new_place("folder")
    send(mine, cache, place)
    texts = [path.read_text() for path in Path(place).rglob("*.json*")] + [(Path(place) / "README.md").read_text()]
    assert not [text for text in texts if str(mine.home) in text or "/other/" in text]
    pulled = Path(fetch(yours, place)["cache"])
    assert json.loads((pulled / "recipe.jsonl").read_text().splitlines()[0])["recipe"]["extract"]["model"] == "sd21"
    with pytest.raises(CacheError, match=r"samples/x\.jpg cannot be read \(also y\.jpg\)"):
        FeatureReader(pulled).require([3])
    assert verify_cache(pulled)["ok"]


def test_a_cache_whose_fingerprint_holds_a_path_is_refused(write_cache, new_place, mine):
    cache, place = write_cache(mine, model=f"{mine.home}/weights"), new_place("folder")
    with pytest.raises(ConfigError, match=r"zarr\.json.*" + str(mine.home)):
        send(mine, cache, place)
    assert not (Path(place) / "xd3d-share.json").exists()


def test_features_of_licensed_images_are_sent_to_an_address_only_when_the_licence_is_confirmed(
    write_cache, new_place, mine, hub
):
    cache = write_cache(mine)
    for kind in ("s3", "hub", "memory"):
        with pytest.raises(ConfigError, match=r"nuScenes.*non-commercial") as refused:
            push(mine, str(cache), new_place(kind))
        assert "--confirm-licence" in str(refused.value)
    assert hub.repositories == {}
    push(mine, str(cache), new_place("folder"))


def test_the_card_says_what_the_cache_is_and_one_that_was_edited_is_kept(write_cache, new_place, mine, hub):
    from huggingface_hub import DatasetCard

    cache = write_cache(mine)
    send(mine, cache, "hf://datasets/owner/features")
    files = hub.repositories["datasets/owner/features"].files
    card = DatasetCard(files["README.md"].decode())
    assert card.data.license == "other"
    assert card.data.license_link == "https://www.nuscenes.org/terms-of-use"
    assert {"xd3d", "lidar"} <= set(card.data.tags)
    for part in ("up0, up1, rgb", "18 of 18", "xd3d pull hf://datasets/owner/features", "non-commercial", "sd21"):
        assert part in card.text
    assert hub.repositories["datasets/owner/features"].private
    rewrite("hf://datasets/owner/features", "README.md", b"mine")
    send(mine, cache, "hf://datasets/owner/features")
    assert hub.repositories["datasets/owner/features"].files["README.md"] == b"mine"


def test_a_pull_that_does_not_fit_the_disk_is_refused_before_it_begins(
    write_cache, new_place, mine, yours, monkeypatch
):
    from xd3d.cache.stores.local import LocalStore

    cache, place = write_cache(mine), new_place("folder")
    send(mine, cache, place)
    monkeypatch.setattr(LocalStore, "free_bytes", lambda _: 1000)
    with pytest.raises(DiskSpaceError, match="--taps"):
        fetch(yours, place)
    assert not yours.home.exists()


@pytest.mark.slow
def test_caches_can_be_pulled_into_a_bucket(write_cache, new_place, mine, yours, monkeypatch, new_bucket):
    cache, place, bucket = write_cache(mine), new_place("folder"), new_bucket()
    send(mine, cache, place)
    monkeypatch.setenv("XD3D_CACHES", bucket)
    done = fetch(yours, place)
    assert done["cache"] == f"{bucket}/{cache.name}"
    assert diff_caches(cache, done["cache"])["equal"]
    assert fetch(yours, place)["there"] > 0


def write_networks(path, *names, agents_of):
    """A cache of several networks in ``path``: maps of each, and agents for some choices of them."""
    create_networks(path)
    tap = TapSpec(name="up1", channels=2, height=3, width=4, extent=(3.0, 4.0))
    facts = {"image_keys": ["a", "b"], "images_per_frame": 1, "recipe": {"dataset": "nuscenes"}}
    for name in names:
        fields = {"network": name, "taps": ["up1"]}
        where = network_part(path, name)
        fill(CacheWriter.open(where, taps=[tap], agents=0, part="features", fingerprint=fields, **facts))
    for chosen in agents_of:
        taps = [replace(tap, name=f"{name}/up1") for name in chosen]
        fields = {"networks": dict.fromkeys(chosen, "digest"), "taps": [each.name for each in taps]}
        where = agents_part(path, fields)
        fill(CacheWriter.open(where, taps=taps, agents=3, part="agents", grid=taps[0], fingerprint=fields, **facts))


def fill(writer):
    with writer:
        for shard in writer.pending_shards():
            count = len(shard.rows)
            arrays = {name: np.ones((count, *a.row_shape), a.dtype) for name, a in writer.layout.arrays.items()}
            writer.write_rows(shard, StoredRows(rows=shard.rows, arrays=arrays))


def test_networks_of_a_cache_are_chosen_and_added_later(new_place, mine, yours):
    cache, place = mine.cache("nuscenes", "0123456789ab"), new_place("folder")
    write_networks(cache, "one", "two", agents_of=[("one",), ("one", "two")])
    send(mine, cache.name, place)
    local = fetch(yours, place, networks=["one"])["cache"]
    assert Path(local).name == cache.name
    assert describe_networks(local)["networks"].keys() == {"one"}
    assert len(list((Path(local) / "agents").glob("*/zarr.json"))) == 1
    with pytest.raises(ConfigError, match="--networks"):
        fetch(yours, place, taps=["up1"])
    with pytest.raises(CacheError, match=r"'three'.*one"):
        fetch(yours, place, networks=["three"])
    done = fetch(yours, place)
    assert done["there"] > 0
    assert describe_networks(local)["networks"] == describe_networks(cache)["networks"]
    assert check_parts(local)["ok"]


def test_a_network_of_other_settings_is_not_mixed_in(new_place, mine, yours):
    cache, place = mine.cache("nuscenes", "0123456789ab"), new_place("folder")
    write_networks(cache, "one", agents_of=[("one",)])
    send(mine, cache, place)
    other = yours.cache("nuscenes", "0123456789ab")
    create_networks(other)
    tap = TapSpec(name="up1", channels=5, height=3, width=4, extent=(3.0, 4.0))
    fill(
        CacheWriter.open(
            network_part(other, "one"),
            taps=[tap],
            agents=0,
            part="features",
            fingerprint={"network": "one", "taps": ["up1"]},
            image_keys=["a", "b"],
            images_per_frame=1,
            recipe={"dataset": "nuscenes"},
        )
    )
    with pytest.raises(CacheMismatchError, match="--replace"):
        fetch(yours, place)
    with pytest.raises(CacheMismatchError, match="--replace"):
        send(yours, other, place)
    fetch(yours, place, replace=True)
    assert check_parts(other)["ok"]
    assert describe_networks(other)["networks"] == describe_networks(cache)["networks"]


def test_an_address_that_nothing_opens_is_refused(write_cache, mine, yours):
    cache = write_cache(mine)
    for act in (lambda: send(mine, cache, "nowhere://bucket/x"), lambda: fetch(yours, "nowhere://bucket/x")):
        with pytest.raises(ConfigError, match=r"nowhere://bucket/x.*s3://"):
            act()
