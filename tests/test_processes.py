"""Which process this is, which device it takes and how many threads: what an environment may say, and what counts."""

import pytest
import torch
from xd3d.errors import BackendError, RunError
from xd3d.processes import (
    ProcessRank,
    is_first_process,
    launched_rank,
    select_device,
    threads_each,
    torchrun_processes,
    world_size,
)


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that PyTorch sees so many GPUs."""

    def pretend(count):
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    return pretend


@pytest.fixture
def environment(monkeypatch):
    """Set these variables of a launcher, and no other one."""

    def put(**values):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_a_process_that_joined_no_others_is_the_first_of_one_whatever_the_environment_says(environment, gpus):
    environment(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    assert (is_first_process(), world_size(), torchrun_processes()) == (True, 1, 1)
    gpus(4)
    assert select_device("auto") == torch.device("cuda")


def test_what_a_launcher_says_is_read_where_processes_are_to_join(environment):
    environment(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1")
    assert launched_rank() == ProcessRank(rank=3, local_rank=1, world_size=4)
    environment(RANK=" 3 ", WORLD_SIZE="4")
    assert launched_rank() == ProcessRank(rank=3, world_size=4)
    for alone in ({}, {"WORLD_SIZE": "4"}, {"RANK": "1", "WORLD_SIZE": ""}):
        environment(**alone)
        assert launched_rank() == ProcessRank()
    environment(RANK="0", WORLD_SIZE="2", TORCHELASTIC_RUN_ID="none")
    assert torchrun_processes() == 2


@pytest.mark.parametrize(
    "values",
    [
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "a"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "0", "WORLD_SIZE": "9" * 5000},
    ],
    ids=lambda values: str(values)[:60],
)
def test_numbers_that_name_no_process_are_refused(environment, values):
    environment(**values)
    with pytest.raises(RunError, match=r"RANK=.*WORLD_SIZE=.*unset"):
        launched_rank()


def test_each_of_several_processes_takes_its_own_gpu_or_the_only_one_it_is_shown(gpus):
    ranks = [ProcessRank(rank=number, local_rank=number, world_size=4) for number in range(4)]
    gpus(4)
    assert [select_device("cuda", process=rank).index for rank in ranks] == [0, 1, 2, 3]
    gpus(1)  # srun --gpus-per-task=1
    assert [select_device("auto", process=rank) for rank in ranks] == [torch.device("cuda", 0)] * 4
    gpus(2)
    with pytest.raises(RunError, match=r"Process 3 of.*GPU:.*sees 2"):
        select_device("auto", process=ranks[3])
    assert select_device("cpu", process=ranks[3]) == torch.device("cpu")


def test_cuda_by_name_without_a_gpu_is_an_error_and_auto_is_the_cpu(gpus):
    gpus(0)
    assert select_device("auto") == select_device("cpu") == torch.device("cpu")
    with pytest.raises(BackendError, match=r"extract\.device.*CUDA"):
        select_device("cuda", setting="extract.device")


@pytest.mark.parametrize(
    ("value", "threads"),
    [("4", 4), ("4,2", 4), (" 6 , 3,1", 6), ("08", 8)]
    + [(odd, 3) for odd in ("", "0", "-2", "four", ",2", "4.5", "4 2", "1e3", "\u0664", "9" * 5000)],
    ids=lambda value: str(value)[:8],
)
def test_the_first_number_of_omp_num_threads_counts_and_what_is_none_is_passed_over(monkeypatch, value, threads):
    monkeypatch.setattr("torch.get_num_threads", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads_each(2) == threads
