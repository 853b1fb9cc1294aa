"""Random numbers of a training: every use draws from a stream of its own.

A stream is named by the run's seed, the use and the use's own indices (the step, say). Without the use in the name, two
uses with equal indices would draw the same numbers: numpy pads a short list of seeds with zeros.
"""

from enum import IntEnum

import numpy as np

__all__ = ["Use", "generator"]


class Use(IntEnum):
    """What a stream is for. Values never change: a resumed run would go on with other numbers."""

    ORDER = 1  #: the order of the frames; indices: epoch, 0 for the source or 1 for the target
    SAMPLE = 2  #: augmentation; indices: step, sample of the batch, 0 for the source or 1 for the target
    FORWARD = 3  #: seeds PyTorch's generators for a forward pass; index: micro-batch, counted from the run's start


def generator(seed: int, use: Use, *indices: int) -> np.random.Generator:
    """The generator of ``use`` at ``indices``, integers of 0 or more, in a training with ``seed``."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(use, *indices)))
