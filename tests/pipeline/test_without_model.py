"""A cache alone is enough to train, evaluate and report: the diffusion model that made it may be elsewhere."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from xd3d.cache.schema import TapSpec
from xd3d.cache.writer import CacheWriter
from xd3d.errors import CacheError, CacheMismatchError, ModelError
from xd3d.pipeline import jobs
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.pseudo_labels import pseudo_label
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.datasets.settings import DomainSettings
from xd3d.stages.extract import catalogue, models
from xd3d.stages.train.monitor import TIMING_KEYS
from xd3d.stages.train.run_log import read_log

TINY = Path(models.__file__).parent / "models" / "tiny-street"
SMALL = (
    *("extract.image_size=[48,80]", "extract.agents.count=16", "extract.agents.rounds=2", "model.preset=slim"),
    *("train.steps=4", "train.batch_size=2", "train.milestones=[3]", "train.validate_every=4", "train.workers=0"),
)
# One of two processes that read the same cache: what it hashed, and the fingerprint it reads features by.
SCRIPT = """
import json, sys
from pathlib import Path
from xd3d.pipeline.config import load_config
from xd3d.pipeline.domains import DomainOpener
from xd3d.pipeline.workspace import Workspace
from xd3d.stages.extract import digests
from xd3d.stages.train.parallel import distributed
hashed, real = [], digests._hash
digests._hash = lambda path: hashed.append(path.name) or real(path)
config = load_config("default", sys.argv[2:]).config
opener = DomainOpener(Workspace(home=Path(sys.argv[1])), config, cached=True)
with distributed("cpu"):
    found = opener.fingerprint("nuscenes")
print(json.dumps([len(hashed), found]))
"""


@pytest.fixture
def workspace(tiny_nuscenes_root, tmp_path):
    """A workspace with an index; beside it a ``model``, and ``other`` weights of the same shape."""
    for name in ("model", "other"):
        shutil.copytree(TINY, tmp_path / name)
    weights = tmp_path / "other/unet/diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    made = Workspace(home=tmp_path / "work")
    jobs.prepare("nuscenes", tiny_nuscenes_root, version=None, cameras="CAM_FRONT", workspace=made)
    return made


def opener(workspace, *overrides):
    return DomainOpener(workspace, load_config("default", (*SMALL, *overrides)).config, cached=True)


def features(workspace, *overrides):
    return opener(workspace, *overrides).open(DomainSettings(domain="all"), "train").features


def empty_cache(workspace, *overrides):
    """A cache without images, with the fingerprint of the settings."""
    domains = opener(workspace, *overrides)
    index, path = domains.index("nuscenes"), domains.cache_path("nuscenes")
    path.parent.mkdir(exist_ok=True)
    CacheWriter.open(
        path,
        taps=[TapSpec(name="up1", channels=1, height=1, width=1, extent=(1.0, 1.0))],
        agents=1,
        image_keys=[str(key) for key in index.images.key],
        images_per_frame=1,
        fingerprint=domains.fingerprint("nuscenes"),
        recipe={"dataset": "nuscenes", "extract": domains.extract_settings("nuscenes").model_dump(mode="json")},
    ).close()
    return path


def without_pace(run):
    return [{name: value for name, value in each.items() if name not in TIMING_KEYS} for each in read_log(run)]


def test_a_cache_that_is_copied_to_a_machine_without_the_model_trains_evaluates_and_reports_the_same(
    workspace, tiny_nuscenes_root, tmp_path, xd3d
):
    settings = (*SMALL, f"extract.model={tmp_path / 'model'}")
    cache = jobs.extract_features(
        "nuscenes", "default", settings, None, retry_failed=False, workspace=workspace
    ).result["cache"]
    run = Path(jobs.train("default", settings, cached=True, run=None, workspace=workspace).result["run"])
    scores = jobs.evaluate(None, split=None, domain="target", absent=None, workspace=workspace).result
    losses = without_pace(run)

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tiny_nuscenes_root, elsewhere / "data")
    shutil.copytree(cache, elsewhere / "work" / "cache" / Path(cache).name)
    for gone in (workspace.home, tmp_path / "model", tmp_path / "other"):
        shutil.rmtree(gone)

    def result(*command):
        done = xd3d(*command, "--json", XD3D_HOME=str(elsewhere / "work"))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    result("prepare", "--root", str(elsewhere / "data"), "--cameras", "CAM_FRONT")
    trained, said = result("train", "--cached", *(part for each in settings for part in ("--set", each)))
    told = f"The model '{tmp_path / 'model'}' is not on this machine: the features are those of {elsewhere}"
    assert said.count(told) == 1
    assert Path(trained["run"]).name == run.name
    assert without_pace(Path(trained["run"])) == losses
    assert [each["step"] for each in losses if "loss" in each] == [1, 2, 3, 4]
    scored, _ = result("evaluate")
    for key in ("miou", "iou", "confusion"):
        assert scored[key] == scores[key], key
    assert scored["protocol"]["features"] == scores["protocol"]["features"]
    assert Path(result("report")[0]["report"]).is_file()
    assert result("cache", "verify", str(next((elsewhere / "work" / "cache").iterdir())))[0]["ok"]
    assert pseudo_label(workspace=elsewhere / "work").result["frames"] > 0


def test_no_network_is_asked_for_a_model_of_the_hub_and_caches_may_be_kept_anywhere(workspace, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(catalogue, "fetch", lambda *facts, **_: asked.append(facts))
    made = empty_cache(workspace, f"extract.model={tmp_path / 'model'}")
    place = shutil.move(made.parent, tmp_path / "a large disk")
    for model in ("sd21-base", "owner/name", "owner/its--name"):
        found = features(workspace, f"extract.model={model}", f"extract.caches={place}")
        assert found.fingerprint["model"] == models.resolve_model("tiny-street").digest
    with pytest.raises(CacheError, match="no cached features of nuscenes"):
        features(workspace, "extract.model=owner/name")
    assert not asked


def test_where_caches_of_two_models_fit_both_are_named_and_one_is_chosen_by_its_folder(workspace, tmp_path, caplog):
    caches = [empty_cache(workspace, f"extract.model={tmp_path / name}") for name in ("model", "other")]
    gone = "extract.model=/nowhere/model"
    with pytest.raises(CacheError, match=r"(?s)'/nowhere/model'.*machine.*extract\.caches=") as refused:
        features(workspace, gone)
    for cache, name in zip(caches, ("model", "other"), strict=True):
        assert f"{cache} (digest " in str(refused.value)
        assert f"made with '{tmp_path / name}'" in str(refused.value)
    chosen = tmp_path / "chosen" / caches[1].name
    shutil.copytree(caches[1], chosen)
    found = features(workspace, gone, f"extract.caches={chosen.parent}")
    assert found.fingerprint["model"] == models.resolve_model(str(tmp_path / "other")).digest
    assert found.path == chosen
    # With the model on the machine its own cache is the one, whatever else is there, and others are refused.
    assert features(workspace, f"extract.model={tmp_path / 'model'}").path == caches[0]
    with pytest.raises(CacheMismatchError, match="model: expected"):
        features(workspace, f"extract.model={tmp_path / 'model'}", f"extract.caches={chosen.parent}")
    assert sum("is not on this machine" in record.getMessage() for record in caplog.records) == 1


def test_features_of_the_bundled_model_are_not_those_of_an_absent_one(workspace):
    empty_cache(workspace, "extract.model=tiny-street")
    with pytest.raises(CacheMismatchError, match="/nowhere/model"):
        features(workspace, "extract.model=/nowhere/model")


def test_copies_of_one_cache_and_damaged_ones_leave_the_choice_clear(workspace, tmp_path, caplog):
    model = f"extract.model={tmp_path / 'model'}"
    cache = empty_cache(workspace, model)
    shutil.copytree(cache, cache.with_name("nuscenes-copy"))
    shutil.copytree(cache, cache.with_name("nuscenes-damaged"))
    (cache.with_name("nuscenes-damaged") / "zarr.json").write_text("{")
    cache.with_name("nuscenes-copy").touch()
    assert features(workspace, "extract.model=/nowhere").path == cache
    assert f"the features are those of {cache} (digest" in caplog.text
    shutil.rmtree(cache)
    for chosen in (model, "extract.model=/nowhere"):
        assert features(workspace, chosen).path.name == "nuscenes-copy"
    shutil.rmtree(cache.with_name("nuscenes-copy"))
    with pytest.raises(CacheError, match=r"nuscenes-damaged"):
        features(workspace, "extract.model=/nowhere")


@pytest.mark.parametrize(
    ("change", "field"),
    [("image_size=[96,160]", "image_size"), ("taps=[up1]", "taps"), ("agents.count=9", "agents.count")],
)
def test_what_else_differs_is_refused_by_its_name_alone(workspace, tmp_path, change, field):
    empty_cache(workspace, f"extract.model={tmp_path / 'model'}")
    with pytest.raises(CacheMismatchError) as refused:
        features(workspace, "extract.model=/nowhere", f"extract.{change}")
    lines = [line.strip() for line in str(refused.value).splitlines() if ": expected " in line]
    assert [line.partition(": expected ")[0] for line in lines] == [field]


def test_of_a_model_and_the_weights_in_its_unet_each_may_be_gone(workspace, tmp_path):
    parts = (f"extract.model={tmp_path / 'model'}", f"extract.unet={tmp_path / 'other' / 'unet'}")
    empty_cache(workspace, *parts)
    gone = ("extract.model=/nowhere", "extract.unet=owner/weights:unet.safetensors")
    whole = features(workspace, *parts).fingerprint
    for chosen in ((parts[0], gone[1]), (gone[0], parts[1]), gone):
        assert features(workspace, *chosen).fingerprint == whole
    with pytest.raises(CacheMismatchError, match=r"\n  model: .*\S+, .*\S+\n"):
        features(workspace, f"extract.model={tmp_path / 'other'}", gone[1])


def test_a_network_with_taps_of_its_own_may_be_gone(workspace, tmp_path):
    folder = tmp_path / "dino"
    folder.mkdir()
    facts = {"model_type": "dinov2", "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    settings = (f"extract.model={folder}", "extract.weights=random")
    empty_cache(workspace, *settings)
    whole = features(workspace, *settings).fingerprint
    assert whole["taps"] == ["block2", "rgb"]
    shutil.rmtree(folder)
    assert features(workspace, *settings).fingerprint == whole
    with pytest.raises(CacheMismatchError, match=r"\n  taps: "):
        features(workspace, *settings, "extract.taps=[block1,rgb]")


def test_stage_one_asks_for_its_model_and_a_folder_that_is_there_must_be_whole(workspace, tmp_path):
    model = tmp_path / "model"
    empty_cache(workspace, f"extract.model={model}")
    (model / "vae" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"lacks config\.json"):
        features(workspace, f"extract.model={model}")
    with pytest.raises(ModelError, match="'/nowhere'"):
        jobs.extract_features(
            "nuscenes", "default", (*SMALL, "extract.model=/nowhere"), None, retry_failed=False, workspace=workspace
        )


@pytest.mark.parametrize("here", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_of_several_processes_the_first_finds_the_digest(workspace, tmp_path, here):
    path = Path(__file__).parents[1] / "stages" / "train" / "together.py"
    spec = importlib.util.spec_from_file_location("together", path)
    together = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(together)

    cache = empty_cache(workspace, f"extract.model={tmp_path / 'model'}")
    if not here:
        shutil.rmtree(tmp_path / "model")
    settings = (*SMALL, f"extract.model={tmp_path / 'model'}")
    first, second = map(json.loads, together.outputs(together.start(SCRIPT, str(workspace.home), *settings)))
    assert (
        first[1]
        == second[1]
        == json.loads((cache / "zarr.json").read_text())["attributes"]["xd3d_cache"]["fingerprint"]
    )
    assert (first[0] > 0, second[0]) == (here, 0)
