"""Training by two processes: what one does with twice the batch, through kills and restarts, and with a clear end."""

import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from xd3d.errors import RunError
from xd3d.stages.predict.inference import validate
from xd3d.stages.train.loop import train
from xd3d.stages.train.monitor import TIMING_KEYS
from xd3d.stages.train.run_log import read_log
from xd3d.stages.train.settings import AugmentSettings, ModelSettings

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = ModelSettings(preset="slim", backend="torch", voxel_size=0.5)
PAPER = {"queries": "agents", "inject": "none", "context": "none", "decoupling": "loss"}
# A process of the run in a folder; the second one kills itself, hard, before the step that is named last.
SCRIPT = """
import importlib.util, json, os, signal, sys
import torch
from pathlib import Path
from xd3d.stages.train.loop import train
from xd3d.stages.train.optimise import Stepper
from functools import partial
from xd3d.stages.predict.inference import validate
from xd3d.stages.train.parallel import distributed
from xd3d.stages.train.settings import *
domains_file, data, run, model, fusion, settings, last = sys.argv[1:]
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("tiny_domains", domains_file)
tiny_domains = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_domains)
do_step = Stepper.step
def step(self, number, batches):
    if os.environ["RANK"] == "1" and number == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
    return do_step(self, number, batches)
Stepper.step = step
domain = tiny_domains.open_domain(Path(data), frames=4)
settings = TrainSettings(**json.loads(settings))
with distributed("cpu"):
    train(run=Path(run), source=domain, target=domain if settings.uses_target else None, validation=domain,
          score=partial(validate, fusion="product-prior", workers=0),
          augment=AugmentSettings(), model=ModelSettings(**json.loads(model)),
          fusion=FusionSettings(**json.loads(fusion)), settings=settings)
"""


@pytest.fixture
def start_two(together, small_fusion, train_settings):
    def start(domain, run, *, last=-1, fusion, **values):
        return together.start(
            SCRIPT,
            *(
                str(Path(__file__).parents[1] / "tiny_domains.py"),
                str(domain.index.root),
                str(run),
                MODEL.model_dump_json(),
            ),
            *(small_fusion(**fusion).model_dump_json(), train_settings(**values).model_dump_json(), str(last)),
        )

    return start


@pytest.fixture
def train_alone(small_fusion, train_settings):
    def train_one(domain, run, *, fusion, **values):
        return train(
            run=run,
            source=domain,
            target=domain if "lam_trg" in values else None,
            validation=domain,
            score=partial(validate, fusion="product-prior", workers=0),
            augment=AugmentSettings(),
            model=MODEL,
            fusion=small_fusion(**fusion),
            settings=train_settings(**values),
        )

    return train_one


def stored(run: Path) -> dict[str, torch.Tensor]:
    last = sorted((run / "checkpoints").iterdir())[-1]
    return {f"{path.stem}/{k}": v for path in last.glob("*.safetensors") for k, v in load_file(path).items()}


def timeless(run: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in record.items() if k not in TIMING_KEYS} for record in read_log(run)]


OPTIONS = {"batch_size": 1, "accumulate": 2, "steps": 3, "validate_every": 9, "checkpoint_every": 1}
SPARSE = {"fusion": {"depth": "sparse"}}
OTHERS = [{"fusion": {}, "lam_trg": 0.5, "steps": 5}, {"fusion": {"head": "distil", **PAPER}}]


@pytest.mark.parametrize("more", [SPARSE, *(pytest.param(more, marks=pytest.mark.slow) for more in OTHERS)], ids=str)
def test_two_processes_train_as_one_with_twice_the_batch(make_domain, start_two, train_alone, together, tmp_path, more):
    domain, options = make_domain(frames=4, points=80), {**OPTIONS, **more}
    started = start_two(domain, tmp_path / "two", **options)
    done = train_alone(domain, tmp_path / "one", **{**options, "batch_size": 2})
    together.outputs(started)
    one, two = timeless(tmp_path / "one"), timeless(tmp_path / "two")
    assert [record["step"] for record in one] == [record["step"] for record in two]
    # Adam turns the rounding of the smallest gradients into whole steps, so the two drift apart later on.
    for record, other, precision in zip(one, two, (1e-6, 1e-3, 1e-2), strict=False):
        assert {name: pytest.approx(value, rel=precision, abs=1e-6) for name, value in record.items()} == other
    scores = two[-1]["validation"]["miou"]
    assert scores == {name: pytest.approx(value, abs=0.05) for name, value in one[-1]["validation"]["miou"].items()}
    assert done.best.metric == "fused"


@pytest.mark.slow
@pytest.mark.parametrize("more", [SPARSE, *OTHERS], ids=str)
def test_two_processes_survive_the_death_of_one(make_domain, start_two, together, tmp_path, more):
    domain, options = make_domain(frames=4, points=80), {**OPTIONS, **more}
    unbroken = start_two(domain, tmp_path / "unbroken", **options)
    broken = start_two(domain, tmp_path / "broken", last=1, **options)
    together.outputs(unbroken)
    whole = timeless(tmp_path / "unbroken")
    assert broken[1].wait(60) == -signal.SIGKILL
    _, errors = broken[0].communicate(timeout=60)
    assert broken[0].returncode == 1
    assert "Process 0 of 2 lost another process of this run" in errors
    broken[1].communicate()
    assert len(timeless(tmp_path / "broken")) < len(whole)
    together.outputs(start_two(domain, tmp_path / "broken", **options))
    ours, theirs = stored(tmp_path / "unbroken"), stored(tmp_path / "broken")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert timeless(tmp_path / "broken") == whole


def test_a_run_resumes_with_as_many_processes_as_it_began_with(make_domain, train_alone, tmp_path, monkeypatch):
    domain = make_domain(frames=3, points=60)
    train_alone(domain, tmp_path / "run", fusion={}, steps=1)
    monkeypatch.setattr("xd3d.stages.train.record.world_size", lambda: 2)
    with pytest.raises(RunError, match="processes: expected 1, found 2"):
        train_alone(domain, tmp_path / "run", fusion={}, steps=1)
