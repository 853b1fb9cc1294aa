"""A cache and a run that were pushed train and predict on another machine, which has neither the model nor the run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy_encoder import write_shard
from xd3d.cache.schema import ImageFeatures, TapSpec
from xd3d.cache.writer import CacheWriter
from xd3d.errors import CacheMismatchError, ConfigError, MissingDataError, RunError, StoreError
from xd3d.pipeline import jobs
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.transfer.commands import pull, push
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.settings import DomainSettings
from xd3d.stages.extract import models
from xd3d.stages.train.record import read_record

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TINY = Path(models.__file__).parent / "models" / "tiny-street"
SMALL = (
    *("extract.image_size=[90,160]", "extract.agents.count=16", "extract.agents.rounds=2", "model.preset=slim"),
    *("train.steps=4", "train.batch_size=2", "train.milestones=[3]", "train.validate_every=2", "train.workers=0"),
)
RUN = "hf://owner/network"


@pytest.fixture(scope="module")
def home(tiny_nuscenes_root, tmp_path_factory):
    """A folder with a model, and a workspace with a scored run."""
    folder = tmp_path_factory.mktemp("a home of somebody")
    shutil.copytree(TINY, folder / "my model")
    jobs.prepare(
        "nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=Workspace(home=folder / "work")
    )
    train_in(folder, "fusion.variant=3d-only", "train.steps=2", cached=False)
    return folder


def train_in(folder, *overrides, cached):
    settings = [*SMALL, f"extract.model={folder / 'my model'}", f"extract.caches={folder / 'work/cache'}", *overrides]
    workspace = Workspace(home=folder / "work")
    if cached:
        jobs.extract_features("nuscenes", "default", settings, None, retry_failed=False, workspace=workspace)
    jobs.train("default", settings, cached=cached, run=None, workspace=workspace)
    jobs.evaluate(None, split=None, domain="target", absent=None, workspace=workspace)
    return settings


@pytest.fixture
def mine(home):
    return Workspace(home=home / "work")


@pytest.fixture
def run(mine):
    return mine.last_run()


def opener(workspace, model):
    config = load_config("default", [*SMALL, f"extract.model={model}"]).config
    return DomainOpener(workspace, config, cached=True)


def test_a_pulled_cache_is_found_by_the_settings_it_was_made_with_where_the_model_is_not(mine, home, yours, tmp_path):
    domains = opener(mine, home / "my model")
    keys = [str(key) for key in domains.index("nuscenes").images.key]
    with CacheWriter.open(
        domains.cache_path("nuscenes"),
        taps=[TapSpec(name="up1", channels=1, height=1, width=1, extent=(1.0, 1.0))],
        agents=1,
        image_keys=keys,
        images_per_frame=1,
        fingerprint=domains.fingerprint("nuscenes"),
        recipe={"dataset": "nuscenes", "extract": domains.extract_settings("nuscenes").model_dump(mode="json")},
    ) as writer:
        for shard in writer.pending_shards():
            values = np.full((len(shard.rows), 1, 1), 0.5, np.float32)
            features = ImageFeatures(
                maps={"up1": values[..., None]}, agents={"up1": values}, geometry=values.repeat(5, axis=2)
            )
            write_shard(writer, shard, features, {})
    push(mine, str(domains.cache_path("nuscenes")), str(tmp_path / "place"))
    pull(yours, str(tmp_path / "place"))
    shutil.copytree(mine.index("nuscenes"), yours.index("nuscenes"))
    found = opener(yours, "/nowhere").open(DomainSettings(domain="all"), "train").features
    assert found.fingerprint == domains.fingerprint("nuscenes")
    assert str(found.path) == str(yours.home / "cache" / domains.cache_path("nuscenes").name)
    assert found.read([len(keys) - 1]).maps["up1"].item() == 0.5


def test_a_pulled_run_scores_as_where_it_was_trained(mine, run, yours, tmp_path):
    scores = json.loads(next((run / "scores").iterdir()).read_text())
    push(mine, run.name, str(tmp_path / "place"))
    pulled = pull(yours, str(tmp_path / "place")).result
    assert pulled["name"] == f"{run.name}-pulled"
    shutil.copytree(mine.index("nuscenes"), yours.index("nuscenes"))
    scored = jobs.evaluate(Path(pulled["name"]), split=None, domain="target", absent=None, workspace=yours).result
    assert {key: scored[key] for key in ("miou", "iou", "confusion")} == {
        key: scores[key] for key in ("miou", "iou", "confusion")
    }


@pytest.mark.slow
def test_a_pushed_cache_and_run_train_and_score_elsewhere_as_where_they_were_made(
    hub, tiny_nuscenes_root, tmp_path, xd3d
):
    home = tmp_path / "home"
    shutil.copytree(TINY, home / "my model")
    mine = Workspace(home=home / "work")
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=mine)
    settings = train_in(home, cached=True)
    run, cache = mine.last_run(), next((mine.home / "cache").iterdir())
    scores = json.loads(next((run / "scores").iterdir()).read_text())
    data = shutil.copytree(tiny_nuscenes_root, tmp_path / "data")

    def result(*command, home=tmp_path / "work"):
        done = xd3d(*command, "--json", XD3D_HOME=str(home))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    result("push", cache.name, "hf://datasets/owner/features", "--confirm-licence", home=mine.home)
    result("push", run.name, RUN, home=mine.home)
    shutil.rmtree(home)
    pulled, fetched = result("pull", "hf://datasets/owner/features"), result("pull", RUN)
    result("prepare", "--root", str(data), "--cameras", "CAM_FRONT")
    scored = result("evaluate", "--run", fetched["name"])
    chosen = [each for each in settings if "extract.caches" not in each]
    trained = result("train", "--cached", *(part for each in chosen for part in ("--set", each)))
    assert {key: scored[key] for key in ("miou", "iou")} == {key: scores[key] for key in ("miou", "iou")}
    assert scored["protocol"]["features"] == scores["protocol"]["features"]
    assert Path(trained["run"]).name == run.name
    info = result("cache", "info", pulled["cache"])
    assert (info["done"], info["images"]) == (pulled["images"], pulled["images"])
    assert result("report", "--run", fetched["name"])["report"]


def test_a_run_is_shared_without_its_optimiser_and_without_a_path_of_this_machine(mine, run, hub, home):
    push(mine, str(run), RUN)
    files = hub.repositories["models/owner/network"].files
    assert sorted(name for name in files if not name.endswith((".json", ".jsonl"))) == [
        ".gitattributes",
        "README.md",
        next(name for name in files if name.endswith("model.safetensors")),
    ]
    texts = {name: content.decode() for name, content in files.items() if not name.endswith(".safetensors")}
    assert not [name for name, text in texts.items() if str(home) in text or home.name in text]
    record = json.loads(texts["run.json"])
    assert record["facts"]["extract"]["model"] == "my model"
    assert record["facts"]["caches"] is None
    assert record["train"] == read_record(run)["train"]
    assert json.loads(texts[f"scores/{next((run / 'scores').iterdir()).name}"])["protocol"]["checkpoint"] == run.name


def test_the_card_of_a_run_names_task_data_scores_and_licence(mine, run, hub):
    from huggingface_hub import ModelCard

    push(mine, str(run), RUN)
    card = ModelCard(hub.repositories["models/owner/network"].files["README.md"].decode())
    assert (card.data.license, card.data.datasets, card.data.library_name) == ("other", ["nuscenes"], "xd3d")
    scores = json.loads(next((run / "scores").iterdir()).read_text())
    expected = {f"mIoU ({name})": round(100 * value, 2) for name, value in scores["miou"].items() if value is not None}
    assert {each.metric_name: each.metric_value for each in card.data.eval_results} == expected
    for part in (
        f"xd3d pull {RUN}",
        f"xd3d evaluate --run {run.name}-pulled",
        "non-commercial",
        f"{expected['mIoU (3d)']:.1f}",
    ):
        assert part in card.text


def test_the_card_of_a_pretraining_says_that_training_starts_from_it(mine, run, hub, tmp_path):
    record = {**json.loads((run / "run.json").read_text()), "kind": "pretrain", "classes": []}
    shutil.copytree(run / "checkpoints", tmp_path / "pre/checkpoints")
    (tmp_path / "pre/run.json").write_text(json.dumps(record))
    push(mine, str(tmp_path / "pre"), RUN)
    text = hub.repositories["models/owner/network"].files["README.md"].decode()
    assert "xd3d train --set train.init=pre-pulled" in text
    assert "nuscenes" in text
    assert not [part for part in ("evaluate", "0 classes", "mIoU") if part in text]


def test_a_pulled_run_has_the_weights_of_the_best_step_and_is_verified(mine, run, hub, yours):
    done = push(mine, str(run), RUN).result
    assert push(mine, str(run), RUN).result["sent"] == 0
    folder = Path(pull(yours, RUN).result["run"])
    weights = f"checkpoints/step-{done['step']:08d}/model.safetensors"
    assert (folder / weights).read_bytes() == (run / weights).read_bytes()
    assert pull(yours, RUN).result["fetched"] == 0
    assert not list(folder.rglob("*partial*")) + list(folder.glob("staging"))
    files = hub.repositories["models/owner/network"].files
    files[weights] = files[weights][:-1] + bytes([files[weights][-1] ^ 1])
    with pytest.raises(StoreError, match=weights):
        pull(yours, RUN, out=str(yours.home / "again"))
    assert not (yours.home / "again" / weights).exists()


@pytest.mark.parametrize("name", ["checkpoints/step-00000004/model.pt", "scores/../run.json", "hook.py", "lock"])
def test_a_run_brings_no_other_files_than_runs_have(name, mine, run, hub, yours):
    push(mine, str(run), RUN)
    files = hub.repositories["models/owner/network"].files
    manifest = json.loads(files["xd3d-share.json"])
    manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    files["xd3d-share.json"] = json.dumps(manifest).encode()
    with pytest.raises(StoreError, match=r"nothing was pulled|not pulled"):
        pull(yours, RUN)
    assert not yours.home.exists()


def test_another_run_is_replaced_only_when_told_and_a_folder_without_a_run_is_none(mine, run, yours, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    record = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**record, "train": {**record["train"], "seed": 9}}))
    place = str(tmp_path / "place")
    push(mine, str(run), place)
    with pytest.raises(CacheMismatchError, match="--replace"):
        push(mine, str(other), place)
    push(mine, str(other), place, replace=True)
    assert pull(yours, place).result["name"] == "other-pulled"
    with pytest.raises(ConfigError, match="is a run"):
        push(mine, str(run), place, taps=["up1"])
    with pytest.raises(MissingDataError, match="nothing-here"):
        push(mine, "nothing-here", place)
    shutil.rmtree(other / "checkpoints")
    with pytest.raises(RunError, match="no checkpoint"):
        push(mine, str(other), str(tmp_path / "second"))


def test_a_run_and_a_domain_of_any_name_are_pulled(mine, run, yours, tmp_path):
    named = Path(shutil.copytree(run, mine.run("mein Lauf (ü)")))
    shutil.copy(next((run / "scores").iterdir()), named / "scores/straße-test.json")
    place = str(tmp_path / "place")
    push(mine, named.name, place)
    assert push(mine, named.name, place).result["sent"] == 0
    done = pull(yours, place).result
    assert done["name"] == "mein-Lauf-pulled"
    assert Path(done["run"], "scores/straße-test.json").is_file()
    assert "xd3d evaluate --run mein-Lauf-pulled" in (tmp_path / "place/README.md").read_text()
