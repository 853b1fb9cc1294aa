"""Workers and how to reach them: processes started here, one a GPU, or those of a dask scheduler that runs already."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

from distributed import Client, Nanny, Scheduler, SpecCluster

from ...errors import ClusterError, ConfigError, Xd3dError
from ...processes import own_device, threads_each
from .settings import ExtractSettings

__all__ = ["connected", "local_cluster", "quiet", "worker_environments"]

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
DEATHS = 1  #: workers that may die over one shard before it is put aside, and again when it is tried alone
PATIENCE = 5  #: seconds in which a scheduler must answer
FAREWELL = 20  #: seconds in which workers may end the batch they are at


@contextlib.contextmanager
def connected(scheduler: str | None, environments: list[dict[str, str]]) -> Iterator[Client]:
    """A client of the scheduler at that address, or of one started here with a worker an environment."""
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            client = stack.enter_context(Client(stack.enter_context(local_cluster(environments))))
        else:
            client = stack.enter_context(_client(scheduler))
        try:
            yield client
        except Xd3dError:
            raise
        except (CancelledError, OSError, TimeoutError) as error:
            raise ClusterError(
                f"The scheduler {scheduler or 'of the workers'} went away ({error}). What was finished is kept: start "
                "it, and run the same command again"
            ) from error


def _client(address: str) -> Client:
    try:
        client = Client(address, timeout=PATIENCE)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"No dask scheduler answers at {address!r} ({error}); start one with 'dask scheduler' and give the address "
            "that it prints, such as tcp://host:8786"
        ) from error
    if not client.scheduler_info()["workers"]:
        log.info("The scheduler %s has no workers yet; waiting for the first one", address)
        client.wait_for_workers(1)
    return client


@contextlib.contextmanager
def local_cluster(environments: list[dict[str, str]]) -> Iterator[SpecCluster]:
    """Worker processes on this machine that listen to it alone; they end with this process, however it ends."""
    here = {"host": LOOPBACK, "dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
    options = {**here, "nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    workers = {
        number: {"cls": Nanny, "options": {**options, "env": environment}}
        for number, environment in enumerate(environments)
    }
    scheduler = {"cls": Scheduler, "options": {**here, "port": 0, "allowed_failures": DEATHS}}
    with _interrupts_later():
        cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
    try:
        yield cluster
    finally:
        cluster.close(timeout=FAREWELL)


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Start processes that ignore Ctrl-C, which reaches all of a terminal; this one hears it later and ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to ourselves what dask logs of workers that come and go; what matters becomes an error of ours."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def worker_environments(workers: int, settings: ExtractSettings) -> list[dict[str, str]]:
    """The environment of each worker: that of this process as it is now, with a GPU or its share of the threads.

    Raises:
        ConfigError: there are fewer GPUs than workers.
        BackendError: CUDA is asked for and there is none.
    """
    gpus = _gpus() if own_device(settings.device, setting="extract.device").type == "cuda" else []
    if gpus and workers > len(gpus):
        raise ConfigError(
            f"--workers {workers} asks for a GPU each, and there are {len(gpus)}; give --workers {len(gpus)}"
        )
    threads = threads_each(workers)
    return [
        {**os.environ, "CUDA_VISIBLE_DEVICES": gpus[number] if gpus else "", "OMP_NUM_THREADS": str(threads)}
        for number in range(workers)
    ]


def _gpus() -> list[str]:
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(number) for number in range(torch.cuda.device_count())]
