"""What a worker needs to write one scene of a twin."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .passage import TwinScene

__all__ = ["TwinJob", "share_out"]


@dataclass(frozen=True, kw_only=True)
class TwinJob:
    """One scene of a twin, to be written under ``out``; ``place`` counts the scenes from 0."""

    out: Path
    format: str
    scene: TwinScene
    place: int
    seed: int
    image_size: tuple[int, int]  #: width, height in pixels
    azimuth_steps: int  #: of the LiDAR's turn


def share_out(frames: int, weights: Sequence[int]) -> list[int]:
    """Frames a scene: one each, the rest by weight, what rounding leaves to the first ones."""
    rest = frames - len(weights)
    counts = [1 + rest * weight // max(sum(weights), 1) for weight in weights]
    for place in range(frames - sum(counts)):
        counts[place % len(counts)] += 1
    return counts
