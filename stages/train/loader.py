"""Batches in a fixed order, made ahead by threads of this process.

The order is a function of (seed, step): epoch after epoch of seeded permutations, the last incomplete batch of each
dropped. So any number of threads gives the same batches, and a resumed run goes on where it was.
"""

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np

from ...errors import ConfigError
from .augment import augment_points, sample_generator
from .batch import Batch, BatchPlan, PlacedFrame, collate
from .domain import Domain
from .settings import AugmentSettings

__all__ = ["evaluation_batch", "prefetched", "step_positions", "training_batch"]

Made = TypeVar("Made")
AHEAD = 2  # batches ready or in the making, for each thread


def step_positions(frames: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Positions of the frames in the batch of ``step`` (from 0).

    Raises:
        ConfigError: there are fewer frames than a batch takes.
    """
    batches = frames // batch_size
    if not batches:
        raise ConfigError(
            f"A batch takes {batch_size} frames and the source domain has {frames};"
            f" set train.batch_size to {frames} or less"
        )
    epoch, batch = divmod(step, batches)
    order = np.random.default_rng([seed, epoch]).permutation(frames)
    return [int(position) for position in order[batch * batch_size : (batch + 1) * batch_size]]


def training_batch(
    domain: Domain, plan: BatchPlan, augment: AugmentSettings, *, batch_size: int, seed: int, step: int
) -> Batch:
    """The augmented batch of ``step``; points that leave the voxel cube are dropped."""
    placed = []
    for place, position in enumerate(step_positions(len(domain), batch_size, seed, step)):
        frame = domain.load(position)
        points = augment_points(frame.points, augment, plan.cube, sample_generator(seed, step, place))
        moved = PlacedFrame(key=domain.key(position), frame=frame, points=points, cameras=domain.cameras(frame))
        placed.append(moved.inside(plan.cube))
    return collate(placed, domain, plan)


def evaluation_batch(domain: Domain, plan: BatchPlan, position: int) -> Batch | None:
    """The frame at ``position`` as it is, every point kept; None where no camera sees a point of it.

    A point beyond the voxel cube joins the cube's last voxel.
    """
    frame = domain.load(position)
    if not len(frame.points):
        return None
    far_end = np.float32(plan.cube - plan.model.voxel_size / 2)
    points = np.minimum(frame.points - frame.points.min(0), far_end)
    placed = PlacedFrame(key=domain.key(position), frame=frame, points=points, cameras=domain.cameras(frame))
    return collate([placed], domain, plan)


def prefetched(make: Callable[[int], Made], numbers: range, workers: int) -> Generator[tuple[Made, float], None, None]:
    """Yield ``make(number)`` for each number in order, and the seconds spent waiting for it.

    With ``workers`` > 0, threads make the next ones meanwhile; an error in one is raised when its turn comes. Close it
    (``contextlib.closing``) to stop the threads early.
    """
    if not workers:
        for number in numbers:
            begin = time.perf_counter()
            made = make(number)
            yield made, time.perf_counter() - begin
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="xd3d-loader")
    waiting: deque[Future[Made]] = deque()
    ahead = iter(numbers)
    try:
        for _ in numbers:
            for number in islice(ahead, AHEAD * workers - len(waiting)):
                waiting.append(pool.submit(make, number))
            begin = time.perf_counter()
            made = waiting.popleft().result()
            yield made, time.perf_counter() - begin
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
