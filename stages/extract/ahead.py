"""Decoding ahead of the model: threads read the next pictures while the model computes."""

from collections import ChainMap, deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ...processes import processors
from .extractor import PictureSource

__all__ = ["LARGEST_DECODERS", "Batch", "decode_ahead", "host_threads"]

LARGEST_DECODERS = 16  #: threads; they decode some 900 pictures of 1600 x 900 a second
AHEAD = 3  #: batches that are decoded or waited for; more where they have fewer pictures than there are threads

Batch = tuple[range, np.ndarray, dict[int, str]]  #: image rows, their pictures, and why some could not be read


def decode_ahead(pictures: PictureSource, batches: Iterable[range]) -> Generator[Batch, None, None]:
    """Read the pictures of batches in threads, a few batches ahead; failed pictures are black and keep their place.

    Each image is a task of its own, its views together.
    """
    waiting: deque[tuple[range, list[Future[tuple[np.ndarray, dict[int, str]]]]]] = deque()
    threads = host_threads(LARGEST_DECODERS)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for rows in batches:
            waiting.append((rows, [pool.submit(pictures.read, views) for views in pictures.by_image(rows)]))
            if len(waiting) > max(AHEAD, threads // len(rows)):
                yield _joined(*waiting.popleft())
        while waiting:
            yield _joined(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def host_threads(largest: int) -> int:
    """Threads for work beside the model: one a processor that the process may use, from two up to ``largest``."""
    return max(2, min(largest, processors()))


def _joined(rows: range, tasks: Iterable[Future[tuple[np.ndarray, dict[int, str]]]]) -> Batch:
    found = [task.result() for task in tasks]
    return rows, np.concatenate([images for images, _ in found]), dict(ChainMap(*(failures for _, failures in found)))
