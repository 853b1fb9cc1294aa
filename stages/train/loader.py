"""Batches in a fixed order, whoever makes them and when.

The order is a function of (seed, step): epoch after epoch of seeded permutations, the last incomplete batch of each
dropped. So any number of threads gives the same batches, and a resumed run goes on where it was. Source and target draw
from streams of their own, so that neither's order and augmentation follow from the other's.
"""

import logging
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from ...errors import ConfigError
from ..datasets.frames import Frame
from .augment import augment_points, crop_points
from .batch import Batch, BatchPlan, PlacedFrame, collate, to_corner
from .domain import Domain
from .settings import AugmentSettings
from .streams import Use, generator
from .views import draw_views, identity_views

__all__ = ["epoch_order", "evaluation_batch", "step_positions", "training_batch"]

log = logging.getLogger(__name__)

WINDOW = 8  #: blocks that are shuffled together; their features are read from the disk about once and then kept by it
REDRAWS = 8  #: frames that are tried in place of one without points


@lru_cache(maxsize=8)
def epoch_order(frames: int, seed: int, epoch: int, block: int | None, stream: int = 0) -> Int[np.ndarray, "frames"]:
    """Positions 0 to ``frames - 1``, each once, in the order of ``epoch`` (read only).

    With ``block``, blocks of so many consecutive positions come in random order, and the positions of each ``WINDOW``
    blocks that follow each other are shuffled among themselves: as random as the disk allows.
    """
    rng = generator(seed, Use.ORDER, epoch, stream)
    if block is None or block >= frames:
        order = rng.permutation(frames)
    else:
        blocks = rng.permutation(-(-frames // block))
        order = (blocks[:, None] * block + np.arange(block)).reshape(-1)
        order = order[order < frames]
        for first in range(0, frames, WINDOW * block):
            rng.shuffle(order[first : first + WINDOW * block])
    order.setflags(write=False)
    return order


def step_positions(
    frames: int, batch_size: int, seed: int, step: int, block: int | None = None, stream: int = 0
) -> list[int]:
    """Positions of the frames in the batch of ``step`` (from 0), as ``epoch_order`` has them.

    Raises:
        ConfigError: there are fewer frames than a batch takes.
    """
    batches = frames // batch_size
    if not batches:
        raise ConfigError(
            f"A batch takes {batch_size} frames and a domain that is trained on has {frames};"
            f" set train.batch_size to {frames} or less (all processes together)"
        )
    epoch, batch = divmod(step, batches)
    order = epoch_order(frames, seed, epoch, block, stream)
    return [int(position) for position in order[batch * batch_size : (batch + 1) * batch_size]]


def training_batch(
    domain: Domain,
    plan: BatchPlan,
    augment: AugmentSettings,
    *,
    batch_size: int,
    seed: int,
    step: int,
    block: int | None = None,
    stream: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Batch:
    """The augmented batch of ``step``, one view drawn for each image; points that leave the voxel cube are dropped.

    A frame of which no point is left gives its place to another that is drawn for it, with a warning. With ``share``
    (i, n), part i of n of a batch n times as large.
    """
    rank, shares = share
    positions = step_positions(len(domain), shares * batch_size, seed, step, block, stream)
    own = range(rank * batch_size, (rank + 1) * batch_size)
    drawn = [
        _draw(domain, plan, augment, positions[index], generator(seed, Use.SAMPLE, step, index, stream))
        for index in own
    ]
    return collate(drawn, domain, plan)


def _draw(
    domain: Domain, plan: BatchPlan, augment: AugmentSettings, position: int, rng: np.random.Generator
) -> PlacedFrame:
    """The frame at ``position`` as it is trained on, or another where nothing of it is left."""
    moved = _moved(domain, plan, augment, position, rng)
    for _ in range(REDRAWS):
        if len(moved.points):
            break
        log.warning("No point of frame %s is seen by a camera and inside the cube; another takes its place", moved.key)
        moved = _moved(domain, plan, augment, int(rng.integers(len(domain))), rng)
    return moved


def _moved(
    domain: Domain, plan: BatchPlan, augment: AugmentSettings, position: int, rng: np.random.Generator
) -> PlacedFrame:
    frame = domain.load(position, rng)
    pseudo = domain.pseudo_labels(position, frame)
    if augment.crop is not None and domain.image_size is not None:
        kept = crop_points(frame, augment.crop, domain.image_size, rng)
        frame, pseudo = frame.choose(kept), pseudo[kept] if pseudo is not None else None
    points = augment_points(frame.points, augment, plan.cube, rng)
    frame, views = draw_views(frame, domain.features, rng)
    moved = PlacedFrame(
        key=domain.key(position),
        frame=frame,
        points=points,
        cameras=domain.cameras(frame),
        views=views,
        pseudo=pseudo,
    )
    return moved.inside(plan.cube)


def evaluation_batch(domain: Domain, plan: BatchPlan, position: int, frame: Frame | None = None) -> Batch | None:
    """The frame at ``position`` as it is, every point kept; None where no camera sees a point of it.

    Where the cloud is wider than the voxel cube, so is its grid. ``frame`` is that frame, where it was loaded already.
    """
    frame = frame or domain.load(position)
    if not len(frame.points):
        return None
    views = identity_views(frame, domain.features)
    placed = PlacedFrame(
        key=domain.key(position),
        frame=frame,
        points=to_corner(frame.points),
        cameras=domain.cameras(frame),
        views=views,
    )
    return collate([placed], domain, plan)
