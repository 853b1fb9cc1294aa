"""The loop on tiny domains: what it learns, what it writes, and that a stop of any kind changes nothing."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from xd3d.errors import CacheError, ConfigError, DataError, RunError
from xd3d.locks import FileLock
from xd3d.stages.predict.inference import validate
from xd3d.stages.train.loop import train
from xd3d.stages.train.monitor import TIMING_KEYS
from xd3d.stages.train.pretrain import pretrain
from xd3d.stages.train.run_log import read_log
from xd3d.stages.train.settings import AugmentSettings, FusionSettings, ModelSettings

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = ModelSettings(preset="slim", backend="torch")

# Runs in a process of its own and kills itself, hard, in the middle of writing the given number of a JSON file.
KILLED = """
import importlib.util, json, os, signal, sys
import torch
from pathlib import Path
from functools import partial
from xd3d.stages.predict.inference import validate
from xd3d.stages.train import checkpoint
from xd3d.stages.train.loop import train
from xd3d.stages.train.pretrain import pretrain
from xd3d.stages.train.settings import *
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("tiny_domains", sys.argv[1])
tiny_domains = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_domains)
writes, real = [], checkpoint.write_json
def deadly(path, value):
    writes.append(path)
    if len(writes) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, value)
checkpoint.write_json = deadly
domain = tiny_domains.open_domain(Path(sys.argv[2]), frames=4)
settings = TrainSettings(**json.loads(sys.argv[5]))
target = domain if settings.uses_target else None
function = partial(train, validation=domain, score=partial(validate, fusion="product-prior", workers=0))
if sys.argv[6] == "pretrain":
    function = pretrain
function(run=Path(sys.argv[3]), source=domain, target=target, augment=AugmentSettings(),
      model=ModelSettings(preset="slim", backend="torch"), fusion=FusionSettings(**json.loads(sys.argv[4])),
      settings=settings)
"""


@pytest.fixture
def run_training(small_fusion, train_settings):
    def run(folder, domain, *, target=None, validation=None, fusion=None, augment=None, facts=None, **values):
        return train(
            run=folder,
            source=domain,
            target=target,
            validation=validation,
            score=partial(validate, fusion="product-prior", workers=0),
            model=MODEL,
            fusion=fusion or small_fusion(),
            augment=augment or AugmentSettings(),
            settings=train_settings(**values),
            facts=facts,
        )

    return run


def stored_tensors(run: Path) -> dict[str, torch.Tensor]:
    last = sorted((run / "checkpoints").iterdir())[-1]
    return {f"{path.stem}/{k}": v for path in last.glob("*.safetensors") for k, v in load_file(path).items()}


def timeless(run: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in record.items() if k not in TIMING_KEYS} for record in read_log(run)]


@pytest.mark.parametrize(
    "options",
    [
        {"lam_trg": 0.5, "accumulate": 2},
        pytest.param({"lam_trg": 0.5, "pretrain": True}, marks=pytest.mark.slow),
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"precision": "float16", "accumulate": 2}, marks=pytest.mark.slow),
        pytest.param({"lam_trg": 0.5, "shuffle_block": 1}, marks=pytest.mark.slow),
        pytest.param({"lam_trg": 0.5, "paper": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_kill_9_in_the_middle_of_a_checkpoint_and_resume_equals_an_unbroken_run(
    make_domain, run_training, small_fusion, train_settings, paper, tmp_path, options
):
    domain = make_domain(frames=4, points=100)
    options = dict(options)
    fusion = small_fusion(**paper) if options.pop("paper", False) else small_fusion()
    target = domain if "lam_trg" in options else None
    pretrains = options.pop("pretrain", False)

    def run(folder, **changes):
        if not pretrains:
            return run_training(
                folder, domain, target=target, validation=domain, fusion=fusion, **{**options, **changes}
            )
        settings = train_settings(**{**options, **changes})
        sides = {"source": domain, "target": target}
        return pretrain(run=folder, **sides, model=MODEL, fusion=fusion, augment=AugmentSettings(), settings=settings)

    unbroken = run(tmp_path / "unbroken")
    killed = subprocess.run(
        [
            *(sys.executable, "-c", KILLED, str(Path(__file__).parents[1] / "tiny_domains.py")),
            *(str(domain.index.root), str(tmp_path / "killed")),
            *(fusion.model_dump_json(), train_settings(**options).model_dump_json()),
            "pretrain" if pretrains else "train",
        ],
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [*tmp_path.glob("killed/checkpoints/step-*.partial")], "the kill should hit a half-written one"
    assert len(read_log(tmp_path / "killed")) > 2
    resumed = run(tmp_path / "killed", workers=2)
    assert (resumed.steps, resumed.best) == (unbroken.steps, unbroken.best)
    ours, theirs = stored_tensors(tmp_path / "unbroken"), stored_tensors(tmp_path / "killed")
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("optimiser/") for name in ours)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert timeless(tmp_path / "unbroken") == timeless(tmp_path / "killed")
    states = [sorted(tmp_path.glob(f"{run}/checkpoints/step-*/state.json"))[-1] for run in ("unbroken", "killed")]
    assert states[0].read_bytes() == states[1].read_bytes(), "the scale of the loss is part of the state"


def test_the_run_folder_tells_the_whole_story(make_domain, run_training, load_run, tmp_path):
    domain = make_domain(frames=4, points=100)
    before = torch.get_rng_state()
    done = run_training(tmp_path / "run", domain, validation=domain, facts={"fingerprint": "abc"}, milestones=(4,))
    assert torch.equal(torch.get_rng_state(), before), "training must give the caller's random generator back"
    records = read_log(tmp_path / "run")
    steps = [record for record in records if "loss" in record]
    validations = [record for record in records if "validation" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    losses = {"ce_2d", "ce_3d", "ce_lidar", "xm_2d", "xm_3d"}
    assert steps[0].keys() == {"step", "loss", *losses, "lr", *TIMING_KEYS}
    assert [record["lr"] for record in steps] == pytest.approx([1e-3] * 4 + [1e-4] * 2)
    assert [record["step"] for record in validations] == [3, 6]
    scores = [record["validation"]["miou"]["fused"] for record in validations]
    assert done.best.miou == max(scores)
    assert (done.best.metric, done.best.step) == ("fused", validations[int(np.argmax(scores))]["step"])
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["facts"] == {"fingerprint": "abc"}
    assert record["classes"] == list(domain.merge.classes)
    labels = np.concatenate([domain.load(position).labels for position in range(4)])
    assert record["class_counts"] == [int((labels == number).sum()) for number in range(6)]
    assert record["source"]["index"] == domain.index.digest
    again = run_training(tmp_path / "run", domain, validation=domain, facts={"fingerprint": "abc"}, milestones=(4,))
    assert again == done
    assert read_log(tmp_path / "run") == records, "a finished run must be left alone"
    assert not load_run(tmp_path / "run").training


@pytest.mark.parametrize(("head", "more"), [("refine", set()), ("distil", {"ce_teacher"})])
def test_the_log_of_the_papers_form_has_the_losses_of_its_queries(
    make_domain, run_training, small_fusion, paper, tmp_path, head, more
):
    domain = make_domain(frames=2, points=60)
    run_training(tmp_path / "run", domain, fusion=small_fusion(head=head, **paper), steps=1)
    losses = {"ce_2d", "ce_3d", "xm_2d", "xm_3d", "decoupling", "agreement", *more}
    assert read_log(tmp_path / "run")[0].keys() == {"step", "loss", *losses, "lr", *TIMING_KEYS}


def test_other_settings_are_refused_by_name_and_other_threads_are_not(
    make_domain, run_training, small_fusion, tmp_path
):
    domain = make_domain(frames=4, points=100)
    run_training(tmp_path / "run", domain, steps=2)
    with pytest.raises(RunError, match=r"(?s)fusion\.rank.*train\.lam_dec"):
        run_training(tmp_path / "run", domain, steps=2, lam_dec=0.5, fusion=small_fusion(rank=2))
    with pytest.raises(RunError, match=r"facts\.fingerprint"):
        run_training(tmp_path / "run", domain, steps=2, facts={"fingerprint": "other"})
    other = make_domain(frames=3, points=100)
    with pytest.raises(RunError, match=r"source\.frames"):
        run_training(tmp_path / "run", other, steps=2)
    assert run_training(tmp_path / "run", domain, steps=2, workers=3).steps == 2


def test_validation_frames_without_a_label_choose_nothing(make_domain, run_training, load_run, tmp_path, caplog):
    domain = make_domain(frames=2, points=50)
    done = run_training(tmp_path / "run", domain, validation=domain.unlabelled(), steps=1)
    assert done.best is None
    assert "the last checkpoint is used as the best" in caplog.text
    assert load_run(tmp_path / "run").classes == domain.merge.classes


def test_two_trainings_in_one_folder_are_one_too_many(make_domain, run_training, tmp_path):
    domain = make_domain(frames=2, points=50)
    (tmp_path / "run").mkdir()
    other = FileLock(tmp_path / "run" / "lock")
    with pytest.raises(RunError, match="Another process trains in"):
        run_training(tmp_path / "run", domain, steps=1)
    other.release()
    assert run_training(tmp_path / "run", domain, steps=1).steps == 1
    assert not (tmp_path / "run" / "lock").exists()


def test_a_loss_that_is_not_finite_names_the_step_and_the_frames(make_domain, run_training, tmp_path):
    domain = make_domain(frames=2, points=100)
    read = domain.features.read

    def poisoned(rows):
        features = read(rows)
        features.maps["up2"][:] = np.nan
        return features

    domain.features.read = poisoned
    with pytest.raises(RunError, match=r"step 1.*(frame-0, frame-1|frame-1, frame-0)"):
        run_training(tmp_path / "run", domain)


def test_contradictions_between_settings_and_data_are_refused(make_domain, run_training, small_fusion, paper, tmp_path):
    blind = make_domain(frames=2, lidar_only=True)
    with pytest.raises(RunError, match=r"fusion\.variant=3d-only"):
        run_training(tmp_path / "run", blind)
    with pytest.raises(ConfigError, match=r"train\.batch_size to 2"):
        run_training(tmp_path / "run", make_domain(frames=2), batch_size=3)
    seen = make_domain(frames=2)
    with pytest.raises(RunError, match=r"fusion\.head=distil"):
        run_training(tmp_path / "run", seen, validation=blind, fusion=small_fusion(**paper))
    lidar_only = run_training(tmp_path / "run", seen, validation=blind, steps=1, validate_every=1)
    assert lidar_only.best.metric == "3d", "without images the LiDAR-only branch is what is validated"


def test_a_run_that_could_not_begin_leaves_its_folder_to_one_that_can(make_domain, run_training, tmp_path):
    domain = make_domain(frames=2, points=60)
    labels = [domain.index.root / name for name in domain.index.frames.labels]
    whole = [path.read_bytes() for path in labels]
    with pytest.raises(ConfigError, match=r"train\.batch_size to 2"):
        run_training(tmp_path / "run", domain, batch_size=3)
    for path in labels:
        path.write_bytes(bytes(60))
    with pytest.raises(DataError, match="point of the selection has a class"):
        run_training(tmp_path / "run", domain)
    for path, content in zip(labels, whole, strict=True):
        path.write_bytes(content)
    assert run_training(tmp_path / "run", domain, steps=1).steps == 1


@pytest.mark.parametrize("role", ["source", "target", "validation"])
def test_features_that_are_missing_end_a_run_before_its_first_step(make_domain, run_training, tmp_path, role):
    domains = {name: make_domain(frames=2, cameras=2, points=60) for name in ("source", "target", "validation")}
    asked = []

    def require(rows):
        asked.extend(rows)
        raise CacheError("1 of 4 images have no features")

    domains[role].features.require = require
    with pytest.raises(CacheError, match="1 of 4"):
        run_training(
            tmp_path / "run", domains["source"], target=domains["target"], validation=domains["validation"], lam_trg=0.1
        )
    assert asked == [0, 1, 2, 3]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_it_overfits_one_cloud(make_domain, run_training, small_fusion, tmp_path):
    domain = make_domain(frames=1, points=120)
    still = AugmentSettings(rotation_noise=0.0, flip="none", rotate=False, translate=False)
    done = run_training(
        tmp_path / "run",
        domain,
        validation=domain,
        augment=still,
        fusion=small_fusion(drop_path=0.0),
        steps=90,
        batch_size=1,
        lr=3e-3,
        validate_every=90,
        checkpoint_every=90,
    )
    assert done.best.miou > 0.95
    records = read_log(tmp_path / "run")
    assert records[-1]["validation"]["miou"]["3d"] > 0.9


def test_a_lidar_only_run_is_validated_in_3d(make_domain, run_training, tmp_path):
    domain = make_domain(frames=2, points=100, lidar_only=True)
    fusion = FusionSettings(variant="3d-only")
    done = run_training(tmp_path / "run", domain, validation=domain, fusion=fusion, steps=2)
    assert done.best.metric == "3d"
    assert set(read_log(tmp_path / "run")[0]) == {"step", "loss", "ce_3d", "lr", *TIMING_KEYS}
