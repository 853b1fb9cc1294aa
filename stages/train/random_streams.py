"""Streams of random numbers: each use has its own, named by the seed, the use, and the indices of the use.

Without the use in the name, two uses with equal indices would draw the same numbers: numpy pads a short list of seeds
with zeros. Source and target have different streams too.
"""

from enum import IntEnum

import numpy as np

__all__ = ["Use", "generator"]


class Use(IntEnum):
    """Use of a stream of random numbers. Values must not change, or a resumed run would draw other numbers."""

    ORDER = 1  #: the order of the frames; indices: epoch, 0 for the source or 1 for the target
    SAMPLE = 2  #: augmentation; indices: micro-batch, sample in the batch, 0 for the source or 1 for the target
    FORWARD = 3  #: seeds PyTorch's generators for a forward pass; index: micro-batch, counted from the run's start


def generator(seed: int, use: Use, *indices: int) -> np.random.Generator:
    """Returns the generator of the stream of ``use`` and ``indices`` (non-negative integers) in a run with ``seed``."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(use, *indices)))
