import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from xd3d.stages.synthesize.tiny_pipeline import training as training_module
from xd3d.stages.synthesize.tiny_pipeline.training import TimedTraining


class Clock:
    """A clock that shows one second more at every look, so that every step takes a second."""

    def __init__(self) -> None:
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return float(self.looks)


@pytest.fixture(autouse=True)
def _seconds_are_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_module, "time", Clock())
    monkeypatch.setattr(training_module, "CHECKPOINT_SECONDS", 4.0)


def make(path: Path, seconds: float = 20.0) -> TimedTraining:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 8, 3), nn.Flatten(), nn.Tanh(), nn.Linear(8, 1))
    return TimedTraining(
        module=module, average=copy.deepcopy(module), path=path, minutes=seconds / 60, rate=0.02, seed=3
    )


def loss_of(training: TimedTraining, fail_at: float = 2.0) -> training_module.Loss:
    def loss(rng: np.random.Generator, spent: float) -> Tensor:
        if spent >= fail_at:
            raise KeyboardInterrupt
        inputs = torch.from_numpy(rng.normal(size=(16, 3))).float()
        noise = 0.01 * torch.randn(16, 1)
        return (training.module(inputs) - inputs.sum(1, keepdim=True) - noise).square().mean()

    return loss


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_a_broken_run_resumes_to_the_same_weights_as_an_unbroken_one(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.safetensors")
    whole.run(loss_of(whole), title="whole")

    broken = make(tmp_path / "broken.safetensors")
    with pytest.raises(KeyboardInterrupt):
        broken.run(loss_of(broken, fail_at=0.6), title="broken")
    resumed = make(tmp_path / "broken.safetensors")
    assert 0 < resumed._step < 12
    resumed.run(loss_of(resumed), title="resumed")

    assert torch.equal(weights(resumed.module), weights(whole.module))
    assert torch.equal(weights(resumed.average), weights(whole.average))
    assert resumed.curve[-1][1] == whole.curve[-1][1] == 20


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = make(tmp_path / "run.safetensors")
    first.run(loss_of(first), title="first")
    again = make(tmp_path / "run.safetensors")
    again.run(loss_of(again, fail_at=-1.0), title="again")
    assert torch.equal(weights(again.average), weights(first.average))


def test_training_lowers_the_loss_and_the_average_follows(tmp_path: Path) -> None:
    training = make(tmp_path / "run.safetensors", seconds=300.0)
    training.run(loss_of(training), title="run")
    assert training.curve[-1][2] < 0.1 * training.curve[0][2]
    inputs = torch.randn(64, 3)
    assert (training.average(inputs) - inputs.sum(1, keepdim=True)).abs().mean() < 0.5
