"""Stage one shared out: this process hands the shards to dask workers, one task a shard, and keeps count.

Workers are processes started here, one a GPU, or those of a scheduler that runs already. The bytes are those of a run
in one process.
"""

import contextlib
import logging
import os
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path

from distributed import Client, KilledWorker, Nanny, Scheduler, SpecCluster, as_completed

from ... import __version__
from ...cache.layout import Shard
from ...cache.writer import CacheWriter
from ...errors import ClusterError, ConfigError, Xd3dError
from ...progress import progress
from ..datasets.index import FrameIndex
from .clock import ACTIVITIES
from .extractor import PictureSource
from .job import LOOK_AGAIN, ExtractSummary, cache_opener, check_disk, summarise
from .models import settings_model
from .precision import resolve_dtype
from .settings import ExtractSettings
from .specs import tap_specs
from .worker import ShardWorker, fill_shard, misfit

__all__ = ["extract_with_workers"]

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
DEATHS = 3  #: workers that may die over one shard before it is given up
PATIENCE = 5  #: seconds in which a scheduler must answer
FAREWELL = 20  #: seconds in which workers may end the batch they are at


def extract_with_workers(
    index: FrameIndex,
    settings: ExtractSettings,
    cache_path: Path | str,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    retry_failed: bool = False,
    root: Path | None = None,
) -> ExtractSummary:
    """Fill the cache as ``extract_features`` does, with ``workers`` processes of this machine or those of a scheduler.

    Workers of a ``scheduler`` (an address such as ``tcp://host:8786``) must see the data root and the cache under the
    same paths and have the same xd3d. A worker that dies is replaced where it can be, and its shard given to another.

    Raises:
        ConfigError: more workers than GPUs.
        ClusterError: the scheduler cannot be reached or went away, a worker does not fit, or workers died too often.
        ModelError, MissingDataError, CacheError, CacheMismatchError, DiskSpaceError: as ``extract_features``.
    """
    start = time.monotonic()
    pictures = PictureSource(index=index, image_size=settings.image_size, views=settings.views, root=root)
    model = settings_model(settings)
    settings = settings.model_copy(update={"dtype": resolve_dtype(settings, model)})  # the same on every machine
    opener, specs = cache_opener(index, settings, cache_path), tap_specs(model, settings)
    environments = [] if workers is None else _environments(workers, settings)
    with opener(taps=list(specs.values()), shared=True) as writer:
        shards = list(writer.layout.shards())
        pending = writer.pending_shards(retry_failed)
        check_disk(cache_path, writer.layout, pending)
        seconds, crew, begun = dict.fromkeys(ACTIVITIES, 0.0), 1, time.monotonic()
        if pending:
            plugin = ShardWorker(
                name=f"xd3d-{secrets.token_hex(6)}",
                version=__version__,
                settings=settings,
                pictures=pictures,
                opener=opener,
                witness=writer.witness,
                retry_failed=retry_failed,
                threads=int(environments[0]["OMP_NUM_THREADS"]) if environments else None,
            )
            with _quiet(), _connected(scheduler, environments) as client, _registered(client, plugin):
                crew = len(client.scheduler_info()["workers"])
                begun = time.monotonic()
                lost = _hand_out(client, plugin.name, writer, shards, pending, seconds)
            if lost:
                raise _given_up(lost, writer)
        elapsed = time.monotonic() - begun
        return summarise(
            writer,
            shards,
            start=start,
            computed=sum(len(shard.rows) for shard in pending),
            elapsed=elapsed,
            shares={activity: spent / (elapsed * crew) for activity, spent in seconds.items()},
        )


def _hand_out(
    client: Client,
    name: str,
    writer: CacheWriter,
    shards: Sequence[Shard],
    pending: Sequence[Shard],
    seconds: dict[str, float],
) -> list[Shard]:
    """Have the pending shards filled, adding up what the workers spent; return those that their workers died over."""
    total, left = (sum(len(shard.rows) for shard in part) for part in (shards, pending))
    lost: list[Shard] = []
    todo = list(pending)
    with progress("Extracting features", total, "image", done=total - left) as bar:
        while todo:
            tasks = {client.submit(fill_shard, name, shard.index, pure=False): shard for shard in todo}
            todo = []
            for task in as_completed(tasks):
                shard = tasks[task]
                try:
                    spent = task.result()
                except KilledWorker:
                    lost.append(shard)
                    continue
                if spent is None:
                    todo.append(shard)
                    continue
                for activity, value in spent.items():
                    seconds[activity] += value
                bar.update(len(shard.rows))
            if todo:
                log.info("Waiting for %d shards that other writers are at work on", len(todo))
                time.sleep(LOOK_AGAIN)
    return lost


def _given_up(lost: list[Shard], writer: CacheWriter) -> ClusterError:
    first = lost[0]
    keys = writer.layout.image_keys
    return ClusterError(
        f"{len(lost)} shards were given up because the workers that did them died, {DEATHS + 1} in a row; the first one"
        f" is shard {first.index} (images {keys[first.first]} to {keys[first.last - 1]}). Everything else is stored. "
        "Most often memory runs out: give fewer --workers, or a smaller extract.batch_size or extract.shard_mb; then "
        "run the same command again"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what dask logs of workers that come and go; what matters becomes an error of ours."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _connected(scheduler: str | None, environments: list[dict[str, str]]) -> Iterator[Client]:
    """A client of the scheduler at that address, or of one started here with a worker an environment."""
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            client = stack.enter_context(Client(stack.enter_context(_local_cluster(environments))))
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
def _local_cluster(environments: list[dict[str, str]]) -> Iterator[SpecCluster]:
    """Worker processes on this machine that listen to it alone; they end with this process, however it ends."""
    here = {"host": LOOPBACK, "dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
    options = {**here, "nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    workers = {
        number: {"cls": Nanny, "options": {**options, "env": environment}}
        for number, environment in enumerate(environments)
    }
    scheduler = {"cls": Scheduler, "options": {**here, "port": 0, "allowed_failures": DEATHS}}
    # Ctrl-C reaches every process of a terminal: workers inherit a mask that leaves it to this one to stop them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield cluster
    finally:
        cluster.close(timeout=FAREWELL)


@contextlib.contextmanager
def _registered(client: Client, plugin: ShardWorker) -> Iterator[None]:
    """Send the run to every worker and check that each one can take part; take it back at the end.

    Raises:
        ClusterError: a worker lacks xd3d, or does not see the data or the cache.
    """
    advice = "install the same xd3d there ('pip install xd3d'), or stop that worker"
    found = client.run(_has_package, on_error="return")
    lacking = [worker for worker, answer in found.items() if answer is not True]
    if lacking:
        raise ClusterError(f"The worker {lacking[0]} cannot import xd3d ({found[lacking[0]]}); {advice}")
    client.register_plugin(plugin)
    try:
        for worker, reason in client.run(misfit, plugin.name).items():
            if reason:
                raise ClusterError(f"The worker {worker} {reason}")
        yield
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            client.unregister_worker_plugin(plugin.name)


def _has_package() -> bool:
    return True


def _environments(workers: int, settings: ExtractSettings) -> list[dict[str, str]]:
    """A GPU for each worker, or its share of the threads.

    Raises:
        ConfigError: there are fewer GPUs than workers.
    """
    import torch

    gpus = _gpus() if settings.device != "cpu" and torch.cuda.is_available() else []
    if gpus and workers > len(gpus):
        raise ConfigError(
            f"--workers {workers} asks for a GPU each, and there are {len(gpus)}; give --workers {len(gpus)}"
        )
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, torch.get_num_threads() // workers))
    return [
        {"CUDA_VISIBLE_DEVICES": gpus[number] if gpus else "", "OMP_NUM_THREADS": str(threads)}
        for number in range(workers)
    ]


def _gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
