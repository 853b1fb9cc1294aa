"""Two processes compute, forwards and backwards, what one computes over both their parts."""

import json
from pathlib import Path

import pytest
import torch
from xd3d.errors import RunError
from xd3d.processes import is_first_process, world_size
from xd3d.stages.train.parallel import distributed, number_of_processes

SCRIPT = Path(__file__).with_name("shared_batch.py")
# The second process waits for a sum that the first never joins.
LEFT_ALONE = """
import sys, torch
from xd3d.stages.train.parallel import distributed, rank, total
with distributed("cpu"):
    total(torch.ones(2))
    print("together", flush=True)
    if rank() == 0:
        sys.stdin.read()
    total(torch.ones(2))
"""
# Three processes join; two are shown the same GPU, and each says what it is before and after.
ONE_GPU = """
import os
from xd3d.errors import RunError
from xd3d.processes import is_first_process, world_size
from xd3d.stages.train.parallel import _require_distinct_gpus, distributed
assert is_first_process() and world_size() == 1
with distributed("cpu"):
    _require_distinct_gpus("host gpu-" + os.environ["RANK"])
    try:
        _require_distinct_gpus("host gpu-" + "010"[int(os.environ["RANK"])])
    except RunError as error:
        print(error)
print(is_first_process(), world_size())
"""


def test_processes_that_joined_know_their_number_and_refuse_to_share_a_gpu(together):
    first, second, third = together.outputs(together.start(ONE_GPU, processes=3))
    assert (first.splitlines()[-1], second.strip(), third.splitlines()[-1]) == ("True 3", "False 3", "False 3")
    assert first.splitlines()[0] == third.splitlines()[0]
    assert first.startswith("Processes 0, 2 have the same GPU (host gpu-0); start as many")


def test_norms_losses_and_gradients_of_two_processes_are_those_of_one(load_module, together):
    started = together.start(SCRIPT.read_text())
    with torch.random.fork_rng():
        one = load_module("train/shared_batch").compute()
    first, second = (json.loads(printed) for printed in together.outputs(started))
    for name in ("loss", "norm", "buffers"):
        assert first[name] == second[name], "the processes must stay equal bit for bit"
    close = pytest.approx
    assert first["loss"] == close(one["loss"], rel=1e-6)
    torch.testing.assert_close(torch.tensor(first["gradient"] + second["gradient"]), torch.tensor(one["gradient"]))
    torch.testing.assert_close(first["norm"], one["norm"], rtol=1e-5, atol=1e-5)  # voxels lie around 50
    for name, values in one["buffers"].items():
        assert first["buffers"][name] == close(values, rel=1e-6)
    assert first["kept"] + second["kept"] == one["kept"], "a branch must be dropped for the same samples"
    assert (first["unused"], second["unused"]) == (None, None)
    assert second["alone"] == one["alone"] == [2.0] * 3


@pytest.mark.slow
def test_a_process_that_lost_another_says_so_at_once(together):
    first, second = together.start(LEFT_ALONE, stdin=True)
    assert first.stdout.readline() == "together\n"
    first.kill()
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "RunError: Process 1 of 2 lost another process of this run" in errors
    first.communicate()


def test_what_another_launcher_left_in_the_environment_is_no_torchrun(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with distributed("cpu"):
        assert number_of_processes() == 1
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RunError, match="RANK"), distributed("cpu"):
        pass
    assert (is_first_process(), world_size()) == (True, 1)
