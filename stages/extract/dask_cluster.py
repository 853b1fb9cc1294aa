"""Distributes the shards of stage one to dask workers, several per task, and tracks progress.

Workers are local processes, one per GPU, or those of an external scheduler. The cache has the same bytes as that of a
run in one process.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from distributed import Client, KilledWorker, as_completed

from ... import __version__
from ...cache.layout import Shard
from ...cache.writer import CacheWriter
from ...errors import ClusterError
from ...progress import progress
from ..datasets.index import FrameIndex
from .backbones import tap_specs
from .dask_workers import ShardWorker, call_plugin, connect, fill_task, silenced_dask_logs, worker_environments
from .extractor import StageClock
from .images import PictureSource
from .job import POLL_SECONDS, ExtractSummary, cache_opener, check_disk, summarise
from .models import settings_model
from .precision import resolve_dtype
from .settings import ExtractSettings

__all__ = ["extract_with_workers"]

log = logging.getLogger(__name__)

#: Shards per task. Decoding and writing overlap with the model within a task only; a GPU takes a fraction of a second
#: for a shard, so the gap between tasks matters there.
SHARDS_A_TASK = {"cpu": 1, "cuda": 16}
TASKS_A_WORKER = 8  #: at least, if there are enough shards: all workers should finish at about the same time


def extract_with_workers(
    index: FrameIndex,
    settings: ExtractSettings,
    cache_path: Path | str,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    retry_failed: bool = False,
) -> ExtractSummary:
    """Fills the cache like ``extract_features``, with ``workers`` local processes or those of a scheduler.

    Workers of a ``scheduler`` (an address such as ``tcp://host:8786``) must see the data root and the cache under the
    same paths and run the same version of xd3d. A worker that dies is replaced if possible, and its shards reassigned.

    Raises:
        ConfigError: more workers than GPUs.
        ClusterError: the scheduler cannot be reached or is lost, a worker does not match, or workers died too often.
        ModelError, MissingDataError, CacheError, CacheMismatchError, DiskSpaceError: as ``extract_features``.
    """
    start = time.monotonic()
    pictures = PictureSource.of(index, settings)
    model = settings_model(settings)
    settings = settings.model_copy(update={"dtype": resolve_dtype(settings, model)})  # the same on every machine
    opener, specs = cache_opener(index, settings, cache_path), tap_specs(model, settings)
    environments = [] if workers is None else worker_environments(workers, settings)
    with opener(taps=list(specs.values()), shared=True) as writer:
        shards = list(writer.layout.shards())
        pending = writer.pending_shards(retry_failed)
        check_disk(cache_path, writer.layout, pending)
        clock, worker_count = StageClock(), 1
        if pending:
            plugin = ShardWorker(
                name=f"xd3d-{secrets.token_hex(6)}",
                version=__version__,
                settings=settings,
                pictures=pictures,
                opener=opener,
                presence_key=writer.presence_key,
                retry_failed=retry_failed,
                threads=int(environments[0]["OMP_NUM_THREADS"]) if environments else None,
            )
            with silenced_dask_logs(), connect(scheduler, environments) as client, _registered(client, plugin):
                devices = client.run(call_plugin, plugin.name, "device_type")
                worker_count = len(devices)
                clock.restart()
                largest = max(SHARDS_A_TASK[device] for device in devices.values())
                size = max(1, min(largest, len(pending) // (worker_count * TASKS_A_WORKER)))
                lost = _distribute(client, plugin.name, shards, pending, size, clock)
            if lost:
                raise _lost_shards_error(lost, writer)
        return summarise(writer, shards, pending, clock, start=start, workers=worker_count)


def _distribute(
    client: Client,
    name: str,
    shards: Sequence[Shard],
    pending: Sequence[Shard],
    size: int,
    clock: StageClock,
) -> list[Shard]:
    """Assigns the pending shards, ``size`` per task; returns those that workers died on.

    ``clock`` adds up the times of the workers.
    """
    total, left = (sum(len(shard.rows) for shard in part) for part in (shards, pending))
    with progress("Extracting features", total, "image", done=total - left) as bar:
        submit = partial(_round, client, name, clock=clock, report=bar.update)
        todo, suspects = submit(pending, size)
        while todo:
            log.info("Waiting for %d shards of other writers", len(todo))
            time.sleep(POLL_SECONDS)
            todo, more = submit(todo, 1)
            suspects += more
        # A death counts against every task of the worker: shards that were not the cause succeed alone.
        return [shard for shard in suspects if submit([shard], 1)[1]]


def _round(
    client: Client,
    name: str,
    shards: Sequence[Shard],
    size: int,
    *,
    clock: StageClock,
    report: Callable[[int], object],
) -> tuple[list[Shard], list[Shard]]:
    """Assigns each shard once; returns the shards claimed by other writers, and those on which workers died."""
    busy: list[Shard] = []
    died: list[Shard] = []
    groups = [shards[first : first + size] for first in range(0, len(shards), size)]
    tasks = {client.submit(fill_task, name, [shard.index for shard in group], pure=False): group for group in groups}
    for task in as_completed(tasks):
        try:
            spent, left = task.result()
        except KilledWorker:
            died += tasks[task]
            continue
        for activity, value in spent.items():
            clock.seconds[activity] += value
        busy += [shard for shard in tasks[task] if shard.index in left]
        report(sum(len(shard.rows) for shard in tasks[task] if shard.index not in left))
    return busy, died


def _lost_shards_error(lost: list[Shard], writer: CacheWriter) -> ClusterError:
    first = lost[0]
    keys = writer.layout.image_keys
    return ClusterError(
        f"{len(lost)} shards were given up because every worker that did them died; the first one is"
        f" shard {first.index} (images {keys[first.first]} to {keys[first.last - 1]}). Everything else is stored. "
        "Most often memory runs out: give fewer --workers, or a smaller extract.batch_size or extract.shard_mb; then "
        "run the same command again"
    )


@contextlib.contextmanager
def _registered(client: Client, plugin: ShardWorker) -> Iterator[None]:
    """Registers the plugin with every worker and checks that each can take part; unregisters it at the end.

    Raises:
        ClusterError: a worker lacks xd3d, or cannot see the data or the cache.
    """
    advice = "install the same xd3d there ('pip install xd3d'), or stop that worker"
    found = client.run(_has_package, on_error="return")
    lacking = [worker for worker, answer in found.items() if answer is not True]
    if lacking:
        raise ClusterError(f"The worker {lacking[0]} cannot import xd3d ({found[lacking[0]]}); {advice}")
    client.register_plugin(plugin)
    try:
        for worker, reason in client.run(call_plugin, plugin.name, "unfit_reason").items():
            if reason:
                raise ClusterError(f"The worker {worker} {reason}")
        yield
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            client.unregister_worker_plugin(plugin.name)


def _has_package() -> bool:
    return True
