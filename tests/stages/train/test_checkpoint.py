import json
import resource
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from xd3d.errors import RunError
from xd3d.stages.train.checkpoint import (
    Best,
    TrainState,
    best_step,
    checkpoint_steps,
    load_state,
    load_weights,
    read_best,
    save_checkpoint,
)


def make_state(seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
    return TrainState(network=network, optimiser=optimiser, scaler=torch.amp.GradScaler("cpu", growth_interval=2))


def do_step(state):
    state.optimiser.zero_grad()
    state.scaler.scale(state.network(torch.linspace(-1, 1, 32).view(8, 4)).square().sum()).backward()
    state.scaler.step(state.optimiser)
    state.scaler.update()


def test_a_loaded_state_resumes_bit_for_bit(tmp_path):
    one, other = make_state(0), make_state(1)
    for _ in range(3):
        do_step(one)
    save_checkpoint(tmp_path, one, step=3, best=Best(step=3, metric="xm", miou=0.5))
    do_step(one)
    assert load_state(tmp_path, other, 3) == Best(step=3, metric="xm", miou=0.5)
    do_step(other)
    assert one.scaler.state_dict() == other.scaler.state_dict()
    assert one.scaler.get_scale() > 2**16, "the scale should have grown, or it proves nothing"
    for ours, theirs in zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = one.optimiser.state_dict()["state"], other.optimiser.state_dict()["state"]
    assert all(torch.equal(ours[p][key], theirs[p][key]) for p in ours for key in ("step", "exp_avg", "exp_avg_sq"))


def test_the_last_and_the_best_are_kept(tmp_path):
    state = make_state()
    best = None
    for step in (1, 2, 3, 4):
        if step == 2:
            best = Best(step=2, metric="xm", miou=0.3)
        save_checkpoint(tmp_path, state, step=step, best=best)
    assert checkpoint_steps(tmp_path) == [2, 4]
    assert read_best(tmp_path, 4) == best


def test_where_the_best_was_deleted_the_last_is_taken_with_a_warning(tmp_path, caplog):
    best = Best(step=1, metric="xm", miou=0.3)
    for step in (1, 2):
        save_checkpoint(tmp_path, make_state(), step=step, best=best)
    assert best_step(tmp_path) == 1
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000001")
    assert best_step(tmp_path) == 2
    assert "step 1, is missing" in caplog.text


def test_what_a_killed_writer_left_is_never_taken_for_a_checkpoint(tmp_path):
    state = make_state()
    save_checkpoint(tmp_path, state, step=1, best=None)
    (tmp_path / "checkpoints" / "step-00000002.partial").mkdir()
    assert checkpoint_steps(tmp_path) == [1]
    save_checkpoint(tmp_path, state, step=3, best=None)
    assert checkpoint_steps(tmp_path) == [3]
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_last_one_and_takes_no_room(tmp_path):
    state = make_state()
    save_checkpoint(tmp_path, state, step=1, best=None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(tmp_path, state, step=2, best=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    load_state(tmp_path, make_state(1), 1)


def test_weights_that_are_no_numbers_are_not_stored(tmp_path):
    state = make_state()
    save_checkpoint(tmp_path, state, step=1, best=None)
    with torch.no_grad():
        state.network[1].bias[2] = torch.inf
    with pytest.raises(RunError, match=r"diverged:.*step 2, 1 tensors.*1\.bias.*lower train\.lr"):
        save_checkpoint(tmp_path, state, step=2, best=None)
    assert checkpoint_steps(tmp_path) == [1]


def test_what_is_not_a_checkpoint_is_neither_read_nor_removed(tmp_path):
    strangers = [tmp_path / "checkpoints" / name for name in ("step-best", "step-00000001.backup", "step-00000009")]
    for path in strangers[:2]:
        path.mkdir(parents=True)
    strangers[2].write_text("a file")
    for step in (1, 2):
        save_checkpoint(tmp_path, make_state(), step=step, best=None)
    assert checkpoint_steps(tmp_path) == [2]
    assert all(path.exists() for path in strangers)


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors", "state.json"])
@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_flipped_bit_is_found(tmp_path, name, place):
    state = make_state()
    do_step(state)
    save_checkpoint(tmp_path, state, step=1, best=Best(step=1, metric="xm", miou=0.5))
    path = tmp_path / "checkpoints" / "step-00000001" / name
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"step-00000001/{name}"):
        load_state(tmp_path, make_state(1), 1)


def test_a_checkpoint_of_the_first_versions_has_no_sums_and_is_read(tmp_path):
    state = make_state()
    save_checkpoint(tmp_path, state, step=1, best=None)
    path = tmp_path / "checkpoints" / "step-00000001" / "state.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({name: facts[name] for name in ("step", "best", "scaler")}))
    other = make_state(1)
    assert load_state(tmp_path, other, 1) is None
    assert torch.equal(other.network[0].weight, state.network[0].weight)


def test_damaged_weights_are_refused_by_name(tmp_path):
    save_checkpoint(tmp_path, make_state(), step=1, best=None)
    path = tmp_path / "checkpoints" / "step-00000001" / "model.safetensors"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"model\.safetensors"):
        load_weights(tmp_path, make_state().network, 1)


def test_weights_of_another_network_are_refused(tmp_path):
    save_checkpoint(tmp_path, make_state(), step=1, best=None)
    with pytest.raises(RunError, match="do not fit"):
        load_weights(tmp_path, nn.Linear(4, 5), 1)


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    save_checkpoint(tmp_path, make_state(), step=1, best=None)
    files = sorted(path.name for path in (tmp_path / "checkpoints" / "step-00000001").iterdir())
    assert files == ["model.safetensors", "optimiser.safetensors", "state.json"]
    assert np.array_equal(checkpoint_steps(tmp_path), [1])
