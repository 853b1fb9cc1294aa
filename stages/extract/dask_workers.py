"""Dask workers: the plugin with which a worker loads the model once and fills shards, and the local worker pool.

The plugin is sent to every worker of a run, including those that join or restart later. A shard may be assigned twice,
to two workers or after the death of one: committed shards and those claimed by others are skipped.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distributed import Client, Nanny, Scheduler, SpecCluster, WorkerPlugin, get_worker

from ...cache.stores import open_store
from ...cache.writer import CacheWriter
from ...errors import ClusterError, ConfigError, Xd3dError
from ...processes import select_device, threads_each
from .extractor import FeatureExtractor
from .images import PictureSource
from .job import CacheOpener
from .models import settings_model
from .overlap import fill_shards
from .settings import ExtractSettings

__all__ = [
    "ShardWorker",
    "call_plugin",
    "connect",
    "fill_task",
    "local_cluster",
    "silenced_dask_logs",
    "worker_environments",
]

log = logging.getLogger(__name__)


LOOPBACK = "127.0.0.1"
ALLOWED_FAILURES = 1  #: deaths of workers on one shard before it is set aside, and again when it is retried alone
CONNECT_TIMEOUT = 5  #: seconds to wait for a scheduler
SHUTDOWN_TIMEOUT = 20  #: seconds for workers to finish their current batch


@dataclass(eq=False, kw_only=True)
class ShardWorker(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """One run on one worker; ``presence_key`` is a file that exists in the cache during the run.

    ``threads``: CPU threads of a worker that the run started; None for a worker of an external scheduler. The lock of
    the cache is held during a task only, so a worker that outlives its run does not block others.
    """

    name: str
    version: str
    settings: ExtractSettings
    pictures: PictureSource
    opener: CacheOpener
    presence_key: str
    retry_failed: bool
    threads: int | None

    def setup(self, worker: Any) -> None:
        """Starts on a worker; a worker that the run started ignores Ctrl-C, which the run itself handles."""
        if self.threads is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._stop = threading.Event()
        self._lock = threading.Lock()  # the threads of a worker share one model

    def teardown(self, worker: Any) -> None:
        """Stops on a worker: a running task ends after its current batch."""
        self._stop.set()

    def unfit_reason(self) -> str | None:
        """Returns why this worker cannot take part in the run, or None."""
        from ... import __version__

        if __version__ != self.version:
            return f"has xd3d {__version__}, the run {self.version}; install the same"
        if not self.pictures.index.root.is_dir():
            return f"does not see the data root {self.pictures.index.root}; mount it there under the same path"
        if not open_store(location := self.opener.args[0]).exists(self.presence_key):
            return f"does not see the cache {location}; mount it there under the same path"
        return None

    def device_type(self) -> str:
        """Returns the device type of this worker: "cuda" or "cpu"."""
        return select_device(self.settings.device, setting="extract.device").type

    def fill(self, shards: list[int]) -> tuple[dict[str, float], list[int]]:
        """Fills the pending ones of ``shards``; returns seconds by activity, and shards claimed by other writers."""
        with self._lock:
            self._writer.resume()
            try:
                chosen = map(self._writer.layout.shard, shards)
                self._extractor.clock.restart()
                pending = self._writer.pending_shards(self.retry_failed, among=chosen)
                left = fill_shards(self._writer, pending, self._extractor, self.pictures, self._check_running)
                return dict(self._extractor.clock.seconds), [shard.index for shard in left]
            finally:
                self._writer.close()

    @cached_property
    def _extractor(self) -> FeatureExtractor:
        import torch

        reason, run = self.unfit_reason(), self.opener.keywords["fingerprint"]
        if not reason:
            model = settings_model(self.settings)
            other = self.settings.model if model.digest != run["model"] else self.settings.unet
            if (model.digest, model.unet_digest) != (run["model"], run.get("unet")):
                reason = f"has other files of the model {other} than the run; copy them there"
        if reason:
            raise ClusterError(f"The worker {get_worker().address} {reason}")
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return FeatureExtractor(settings=self.settings)

    @cached_property
    def _writer(self) -> CacheWriter:
        return self.opener(taps=list(self._extractor.specs.values()), shared=True)

    def _check_running(self, images: int) -> None:
        if self._stop.is_set():
            raise ClusterError("The run that this worker took part in has ended")


def fill_task(name: str, shards: list[int]) -> tuple[dict[str, float], list[int]]:
    """Fills shards with the plugin ``name``; this is the dask task."""
    return _plugin(get_worker(), name).fill(shards)


def call_plugin(name: str, method: str, dask_worker: Any) -> Any:
    """Calls a method of the plugin ``name``; ``Client.run`` passes ``dask_worker``."""
    return getattr(_plugin(dask_worker, name), method)()


def _plugin(worker: Any, name: str) -> ShardWorker:
    plugin = worker.plugins.get(name)
    if not isinstance(plugin, ShardWorker):
        raise ClusterError(f"The worker {worker.address} did not take up the run; start it again")
    return plugin


@contextlib.contextmanager
def connect(scheduler: str | None, environments: list[dict[str, str]]) -> Iterator[Client]:
    """Connects to the scheduler at an address, or starts a local one with one worker per environment."""
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
        client = Client(address, timeout=CONNECT_TIMEOUT)
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
    """Starts worker processes that listen on the loopback interface only; they end with this process in any case."""
    here = {"host": LOOPBACK, "dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
    options = {**here, "nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    workers = {
        number: {"cls": Nanny, "options": {**options, "env": environment}}
        for number, environment in enumerate(environments)
    }
    scheduler = {"cls": Scheduler, "options": {**here, "port": 0, "allowed_failures": ALLOWED_FAILURES}}
    with _interrupts_later():
        cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
    try:
        yield cluster
    finally:
        cluster.close(timeout=SHUTDOWN_TIMEOUT)


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Makes processes started in the block ignore Ctrl-C; this process receives it after the block and stops them."""
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
def silenced_dask_logs() -> Iterator[None]:
    """Silences dask's logs about workers that join and leave; real faults raise errors."""
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
    """Returns the environment of each worker: that of this process, with one GPU or a share of the threads.

    Raises:
        ConfigError: there are fewer GPUs than workers.
        BackendError: CUDA is requested and not available.
    """
    gpus = _gpus() if select_device(settings.device, setting="extract.device").type == "cuda" else []
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
