"""What the method is expected to show, as comparisons of two variants that each shift confirms or not."""

from collections.abc import Sequence
from dataclasses import dataclass

from .board import Board
from .variants import BASELINE, REFERENCE

__all__ = ["CLAIMS", "Claim"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """``variant`` in ``reading`` is above ``over``, in the best of ``over_readings``, by ``least`` points or more.

    Where ``least`` is 0, by anything at all.
    """

    says: str
    variant: str
    over: str
    reading: str
    over_readings: Sequence[str]
    least: float = 0.0

    def gains(self, board: Board, shift: str) -> dict[int, float]:
        """By how much, by seed."""
        gains = [
            board.gains(self.variant, self.reading, shift, over=self.over, over_reading=reading)
            for reading in self.over_readings
        ]
        shared = set.intersection(*map(set, gains))
        return {seed: min(each[seed] for each in gains) for seed in sorted(shared)}

    def holds(self, gain: float) -> bool:
        """Whether a mean gain of ``gain`` points is enough."""
        return gain >= self.least if self.least else gain > 0


def _above(over: str, reading: str, says: str, least: float = 0.0, variant: str = REFERENCE) -> Claim:
    return Claim(says=says, variant=variant, over=over, reading=reading, over_readings=(reading,), least=least)


CLAIMS = (
    _above(BASELINE, "3d", f"3D of {REFERENCE} above {BASELINE} by 8", 8.0),
    Claim(
        says=f"fused of {REFERENCE} above xM of image by 5",
        variant=REFERENCE,
        over="image",
        reading="fused",
        over_readings=("xm",),
        least=5.0,
    ),
    _above("full-random-weights", "3d", "trained above random diffusion weights by 2, 3D", 2.0),
    _above("full-random-weights", "fused", "the same, fused", 2.0),
    _above("full-rgb-only", "3d", "above the image tap alone by 2, 3D", 2.0),
    _above("full-rgb-only", "fused", "the same, fused", 2.0),
    _above(BASELINE, "3d_lidar_only", f"without a camera at most 1 below {BASELINE}", -1.0),
    Claim(
        says="fused at most 1 below the best of 2D, 3D and LiDAR only",
        variant=REFERENCE,
        over=REFERENCE,
        reading="fused",
        over_readings=("2d", "3d", "3d_lidar_only"),
        least=-1.0,
    ),
    _above(REFERENCE, "3d", f"UDA above {REFERENCE}, 3D", variant="uda"),
    _above(REFERENCE, "fused", "the same, fused", variant="uda"),
)
