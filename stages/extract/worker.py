"""What a worker of a dask cluster does: it loads the model once, then fills the shards of one task after the other.

The plugin is sent to every worker of a run, also to those that join or are started again later. A shard may be given
out twice, to two workers or after a worker's death: what is committed stays, what is claimed is left.
"""

import signal
import threading
from functools import cached_property
from typing import Any

from distributed import WorkerPlugin, get_worker

from ...cache.stores import open_store
from ...cache.writer import CacheWriter
from ...errors import ClusterError
from ...processes import own_device
from .extractor import FeatureExtractor, PictureSource
from .fill import fill_shards
from .job import CacheOpener
from .models import settings_model
from .settings import ExtractSettings

__all__ = ["ShardWorker", "device_type", "fill_task", "misfit"]


class ShardWorker(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """One run on one worker; ``witness`` is a file in the cache.

    ``threads`` (on a CPU) are those of a worker that the run has started; None stands for one with a life of its own.
    The lock of the cache is held during a task only: a worker that outlives its run keeps nobody out.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        settings: ExtractSettings,
        pictures: PictureSource,
        opener: CacheOpener,
        witness: str,
        retry_failed: bool,
        threads: int | None,
    ) -> None:
        self.name = name
        self.version = version
        self.settings = settings
        self.pictures = pictures
        self.opener = opener
        self.witness = witness
        self.retry_failed = retry_failed
        self.threads = threads

    def setup(self, worker: Any) -> None:
        """Begin on a worker; one that the run has started leaves Ctrl-C, which reaches it too, to the run."""
        if self.threads is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._stop = threading.Event()
        self._one_at_a_time = threading.Lock()  # a worker of many threads has one model

    def teardown(self, worker: Any) -> None:
        """End on a worker: a task under way stops after its batch."""
        self._stop.set()

    def misfit(self) -> str | None:
        """Why this worker cannot take part, if it cannot."""
        from ... import __version__

        if __version__ != self.version:
            return f"has xd3d {__version__}, the run {self.version}; install the same"
        if not self.pictures.root.is_dir():
            return f"does not see the data root {self.pictures.root}; mount it there under the same path"
        if not open_store(location := self.opener.args[0]).exists(self.witness):
            return f"does not see the cache {location}; mount it there under the same path"
        return None

    def device_type(self) -> str:
        """Where this worker computes: "cuda" or "cpu"."""
        return own_device(self.settings.device, setting="extract.device").type

    def fill(self, shards: list[int]) -> tuple[dict[str, float], list[int]]:
        """Fill those of ``shards`` that are still to be done; seconds by activity, and those another writer has now."""
        with self._one_at_a_time:
            return self._fill(shards)

    def _fill(self, shards: list[int]) -> tuple[dict[str, float], list[int]]:
        self._writer.resume()
        try:
            chosen = map(self._writer.layout.shard, shards)
            self._extractor.clock.restart()
            pending = self._writer.pending_shards(self.retry_failed, among=chosen)
            left = fill_shards(self._writer, pending, self._extractor, self.pictures, self._go_on)
            return dict(self._extractor.clock.seconds), [shard.index for shard in left]
        finally:
            self._writer.close()

    @cached_property
    def _extractor(self) -> FeatureExtractor:
        import torch

        reason = self.misfit()
        if not reason and settings_model(self.settings).digest != self.opener.keywords["fingerprint"]["model"]:
            reason = f"has other files of the model {self.settings.model} than the run; copy them there"
        if reason:
            raise ClusterError(f"The worker {get_worker().address} {reason}")
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return FeatureExtractor(settings=self.settings)

    @cached_property
    def _writer(self) -> CacheWriter:
        return self.opener(taps=list(self._extractor.specs.values()), shared=True)

    def _go_on(self, images: int) -> None:
        if self._stop.is_set():
            raise ClusterError("The run that this worker took part in has ended")


def fill_task(name: str, shards: list[int]) -> tuple[dict[str, float], list[int]]:
    """The task: have the plugin ``name`` of the worker fill shards."""
    return _plugin(get_worker(), name).fill(shards)


def misfit(name: str, dask_worker: Any) -> str | None:
    """Why a worker cannot take part in the run of the plugin ``name``; for ``Client.run``, which fills the last one."""
    return _plugin(dask_worker, name).misfit()


def device_type(name: str, dask_worker: Any) -> str:
    """Where a worker computes for the run of the plugin ``name``; for ``Client.run``, which fills the last one."""
    return _plugin(dask_worker, name).device_type()


def _plugin(worker: Any, name: str) -> ShardWorker:
    plugin = worker.plugins.get(name)
    if not isinstance(plugin, ShardWorker):
        raise ClusterError(f"The worker {worker.address} did not take up the run; start it again")
    return plugin
