"""Several networks by the command line's functions: extracted one after the other, trained on, listed and repaired."""

import hashlib
import importlib.util
from pathlib import Path

import pytest
from xd3d.errors import CacheError
from xd3d.pipeline import jobs
from xd3d.pipeline.cli_cache import gc
from xd3d.pipeline.config import load_config, preset_names
from xd3d.pipeline.sharing import Sharing
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.extract.models import resolve_model

COMMON = (
    *("extract.image_size=[56,98]", "extract.agents.count=4", "extract.agents.rounds=2", "extract.device=cpu"),
    *("model.preset=slim", "model.voxel_size=0.2", "fusion.tokens=4", "fusion.query_channels=16"),
    *("fusion.image_channels=8", "train.steps=1", "train.validate_every=1", "train.batch_size=1", "train.workers=0"),
    *("train.milestones=[1]", "train.device=cpu"),
)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    place = Path(__file__).parents[1] / "stages/extract/tiny_networks.py"
    spec = importlib.util.spec_from_file_location("tiny_networks", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_network(tmp_path_factory.mktemp("networks") / "dino", "dinov2")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny_nuscenes_root):
    found = Workspace(home=tmp_path_factory.mktemp("work"))
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras=None, workspace=found)
    return found


def one(*changes):
    return [*COMMON, "extract.models=[tiny-street]", "extract.taps=[tiny-street/up1,rgb]", *changes]


def both(dino, *changes):
    return [
        *COMMON,
        f"extract.models=[tiny-street,{dino}]",
        "extract.taps=[tiny-street/up1,dino/block1,rgb]",
        *changes,
    ]


def extract(workspace, settings, **options):
    return jobs.extract_features(
        "nuscenes", "default", settings, None, retry_failed=False, **options, workspace=workspace
    )


def files(path):
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in Path(path).rglob("*")
        if file.is_file() and file.name != "writer.lock" and "locks" not in file.parts
    }


def test_a_cache_grows_by_a_network_and_training_reads_either_or_both(workspace, dino):
    from xd3d.cache.network_parts import describe_networks

    first = extract(workspace, one())
    assert first.exit_code == 0
    assert "xd3d train --cached --set" in first.text
    assert "--set 'extract.models=[tiny-street]'" in first.text
    path, before = first.result["cache"], files(first.result["cache"])
    assert describe_networks(path)["networks"].keys() == {"tiny-street"}
    with pytest.raises(CacheError, match=r"'dino'.*xd3d extract-features"):
        jobs.train("default", both(dino), cached=True, run=None, workspace=workspace)
    second = extract(workspace, both(dino))
    assert second.result["cache"] == path
    assert second.result["fingerprint"] != first.result["fingerprint"]
    assert {name: files(path)[name] for name in before} == before
    assert describe_networks(path)["networks"].keys() == {"tiny-street", "dino"}
    runs = {
        jobs.train("default", settings, cached=True, run=None, workspace=workspace).result["run"]
        for settings in (
            one(),
            both(dino),
            both(dino, "fusion.taps=[dino/block1]"),
            both(dino, "fusion.taps=[tiny-street/up1,rgb]"),
        )
    }
    assert len(runs) == 4
    done = jobs.evaluate(None, split=None, domain="target", absent=None, workspace=workspace)
    assert done.result["miou"]["xm"] is not None
    forecast = jobs.extract_features("nuscenes", "default", both(dino), None, dry_run=True, workspace=workspace)
    assert forecast.result["left"] == 0


def test_damage_is_repaired_part_by_part(workspace, dino, monkeypatch):
    from xd3d.cache.network_parts import check_parts, repair_parts

    extract(workspace, one())
    path = Path(extract(workspace, both(dino)).result["cache"])
    before = files(path)
    shards = [*path.glob("features/dino/block1/c/**/0"), *path.glob("agents/*/tiny-street/up1/c/**/0")]
    for shard in (file for file in shards if file.is_file()):
        shard.write_bytes(b"x" * shard.stat().st_size)
    assert not check_parts(path)["ok"]
    assert repair_parts(path)["dropped"] > 0
    for settings in (one(), both(dino)):  # the commands that made the parts
        assert extract(workspace, settings).exit_code == 0
    assert check_parts(path)["ok"]
    assert files(path) == before
    monkeypatch.setenv("XD3D_HOME", str(workspace.home))
    assert gc(None, dry_run=True).exit_code == 0


def test_processes_that_share_a_run_fill_the_same_cache(workspace, dino, tmp_path):
    whole = files(extract(workspace, both(dino)).result["cache"])
    shared = both(dino, f"extract.caches={tmp_path / 'shared'}", "extract.shard_mb=100")
    for part in ((1, 2), (2, 2)):
        done = extract(workspace, shared, sharing=Sharing(part=part))
    assert done.exit_code == 0
    found = files(done.result["cache"])
    assert {name: digest for name, digest in found.items() if "recipe" not in name}.items() <= whole.items()
    assert any(name.startswith("agents/") and "/c/" in name for name in found)


CONTROLS = ("dinov2", "clip", "sd+dinov2")


def test_every_published_setting_with_images_has_its_controls():
    names = preset_names()
    for setting in [name.removesuffix("/dg") for name in names if name.endswith("/dg")]:
        published = load_config(f"{setting}/dg").config
        for control in CONTROLS if published.fusion.image else ():
            config = load_config(f"{setting}/{control}").config
            extract = config.extract
            sides = [side for size in (extract.image_size, *extract.image_sizes.values()) for side in size]
            assert all(side % 14 == 0 for side in sides), (setting, control)
            assert {*extract.image_sizes} == {*published.extract.image_sizes}
            assert bool(extract.models) == (control == "sd+dinov2")
            same = {"extract", "augment"}
            assert config.model_dump(exclude=same) == published.model_dump(exclude=same)
            assert config.augment.model_copy(update={"crop": None}) == published.augment.model_copy(
                update={"crop": None}
            )


@pytest.mark.parametrize(
    "preset",
    ["nuscenes_usa_singapore/sd+dinov2", pytest.param("nuscenes_usa_singapore/dinov2", marks=pytest.mark.slow)],
)
def test_a_control_runs_with_random_networks(preset, workspace, dino, tmp_path):
    """Random tiny networks of the same names stand in for the published ones."""
    named = tmp_path / "dinov2-base"
    named.symlink_to(dino)
    street = tmp_path / "sd21-base"
    street.symlink_to(resolve_model("tiny-street").path)
    models = [f"extract.models=[{street},{named}]"] if "sd" in preset else [f"extract.model={named}"]
    taps = ["extract.taps=[sd21-base/up1,dinov2-base/block2]"] if "sd" in preset else ["extract.taps=[block2]"]
    small = [*COMMON, *models, *taps]
    done = jobs.extract_features("nuscenes", preset, small, None, retry_failed=False, workspace=workspace)
    assert done.exit_code == 0
    run = jobs.train(preset, small, cached=True, run=None, workspace=workspace)
    assert run.result["steps"] == 1


def test_a_run_on_several_networks_has_a_report(workspace, dino, tmp_path):
    extract(workspace, both(dino))
    jobs.train("default", both(dino), cached=True, run=None, workspace=workspace)
    jobs.evaluate(None, split=None, domain="target", absent=None, workspace=workspace)
    done = jobs.report(None, tmp_path / "report.html", workspace=workspace)
    page = Path(done.result["report"]).read_text()
    assert "dino/block1" in page


@pytest.mark.slow
def test_workers_fill_the_part_of_every_network(workspace, dino, tmp_path):
    settings = both(dino, f"extract.caches={tmp_path / 'workers'}")
    done = extract(workspace, settings, sharing=Sharing(workers=1))
    assert done.exit_code == 0
    found = files(done.result["cache"])
    assert any(name.startswith("features/dino/block1/c/") for name in found)
