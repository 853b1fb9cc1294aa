"""Makes batches that depend on the seed and the step alone, not on the thread or the time that they are made.

The order is a function of (seed, step): seeded permutations, epoch after epoch, dropping the last incomplete batch of
each. Any number of threads gives the same batches, and a resumed run continues with the same ones.
"""

import logging
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from ...errors import ConfigError
from ..datasets.frames import Frame
from .augment import augment_points, crop_points, sample_generator
from .batch import Batch, BatchPlan, PlacedFrame, collate, to_corner
from .domain import Domain
from .features import ReadFeatures, draw_views, identity_views
from .mixing import mix_frames
from .random_streams import Use, generator
from .sensor_augment import vary_sensor
from .settings import AugmentSettings

__all__ = ["Use", "epoch_order", "evaluation_batch", "generator", "step_positions", "training_batch"]

log = logging.getLogger(__name__)

WINDOW = 8  #: blocks that are shuffled together; the page cache holds their features after the first read
REDRAWS = 8  #: frames that are tried as a replacement for one without points


@lru_cache(maxsize=8)
def epoch_order(frames: int, seed: int, epoch: int, block: int | None, stream: int = 0) -> Int[np.ndarray, "frames"]:
    """Returns the positions 0 to ``frames - 1`` in the order of ``epoch``, as a read-only array.

    With ``block``, blocks of that many consecutive positions are shuffled, and then the positions within each window of
    ``WINDOW`` successive blocks: as random as is possible with mostly sequential reads.
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
    """Returns the positions of the frames in the batch of ``step`` (from 0), in the order of ``epoch_order``.

    Raises:
        ConfigError: there are fewer frames than a batch needs.
    """
    batches = frames // batch_size
    if not batches:
        raise ConfigError(
            f"A batch needs {batch_size} frames and a domain that is trained on has {frames};"
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
    read: ReadFeatures | None = None,
) -> Batch:
    """Makes the augmented batch of ``step``, with one view drawn for each image; drops points outside the voxel cube.

    A frame without any remaining point is replaced by another random frame, with a warning. ``share`` (i, n) selects
    part i of n of a batch that is n times as large. ``read`` is that of ``collate``.
    """
    rank, shares = share
    positions = step_positions(len(domain), shares * batch_size, seed, step, block, stream)
    drawn = [
        _draw(domain, plan, augment, positions[index], sample_generator(seed, step, index, stream))
        for index in range(rank * batch_size, (rank + 1) * batch_size)
    ]
    return collate(drawn, domain, plan, read)


def _draw(
    domain: Domain, plan: BatchPlan, augment: AugmentSettings, position: int, rng: np.random.Generator
) -> PlacedFrame:
    """Returns the augmented frame at ``position``, or a random replacement if none of its points remain."""
    moved = _moved(domain, plan, augment, position, rng)
    for _ in range(REDRAWS):
        if len(moved.points):
            break
        log.warning("No point of frame %s is seen by a camera and inside the cube; another replaces it", moved.key)
        moved = _moved(domain, plan, augment, int(rng.integers(len(domain))), rng)
    return moved


def _moved(
    domain: Domain, plan: BatchPlan, augment: AugmentSettings, position: int, rng: np.random.Generator
) -> PlacedFrame:
    key, frame = domain.key(position), _cropped(domain, augment, position, rng)
    varied = rng.spawn(1)[0]  # numbers of its own: those of ``rng`` are the same with and without mixing
    if augment.mix != "none" and varied.random() < augment.mix_share:
        other = (position + 1 + int(varied.integers(max(len(domain) - 1, 1)))) % len(domain)
        key = f"{key} + {domain.key(other)}"
        frame = mix_frames(frame, _cropped(domain, augment, other, varied), augment.mix, varied)
    if augment.varies_sensor:
        frame = vary_sensor(frame, augment, varied)
    points = augment_points(frame.points, augment, plan.cube, rng)
    frame, views = draw_views(frame, domain.features, rng)
    moved = PlacedFrame(key=key, frame=frame, points=points, cameras=domain.cameras(frame), views=views)
    return moved.inside(plan.cube)


def _cropped(domain: Domain, augment: AugmentSettings, position: int, rng: np.random.Generator) -> Frame:
    """Returns the frame at ``position``, with the points in the windows to train on."""
    frame = domain.load(position, rng)
    if augment.crop is None or domain.image_size is None:
        return frame
    return frame.choose(crop_points(frame, augment.crop, domain.image_size, rng))


def evaluation_batch(
    domain: Domain, plan: BatchPlan, position: int, frame: Frame | None = None, read: ReadFeatures | None = None
) -> Batch | None:
    """Makes a batch of the frame at ``position`` without augmentation; None if no camera sees any of its points.

    All points are kept: the voxel grid is as wide as the cloud needs. ``frame`` is the frame if it is loaded already;
    ``read`` is that of ``collate``.
    """
    frame = frame or domain.load(position)
    if not len(frame.points):
        return None
    views = identity_views(frame, domain.features)
    placed = PlacedFrame(
        key=domain.key(position),
        frame=frame,
        points=to_corner(frame.points).astype(np.float32),
        cameras=domain.cameras(frame),
        views=views,
    )
    return collate([placed], domain, plan, read)
