"""What the method is expected to show, as comparisons of two variants that each shift confirms or not."""

from dataclasses import dataclass

from .board import Board
from .variants import BASELINE, REFERENCE

__all__ = ["CLAIMS", "Claim"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """``variant`` in ``reading`` is above ``over`` in ``over_reading`` by ``least`` points, or by anything at all."""

    says: str
    variant: str
    over: str
    reading: str
    over_reading: str
    least: float = 0.0

    def gains(self, board: Board, shift: str) -> dict[int, float]:
        """By how much, by seed."""
        return board.gains(self.variant, self.reading, shift, over=self.over, over_reading=self.over_reading)

    def holds(self, gain: float) -> bool:
        """Whether a mean gain of ``gain`` points is enough."""
        return gain >= self.least if self.least else gain > 0


def _above(says: str, variant: str, over: str, reading: str) -> Claim:
    return Claim(says=says, variant=variant, over=over, reading=reading, over_reading=reading)


CLAIMS = (
    Claim(
        says=f"{REFERENCE} above {BASELINE} by 3 in 3D",
        variant=REFERENCE,
        over=BASELINE,
        reading="3d",
        over_reading="3d",
        least=3.0,
    ),
    Claim(
        says=f"xM of {REFERENCE} above 3D of {BASELINE} by 5",
        variant=REFERENCE,
        over=BASELINE,
        reading="xm",
        over_reading="3d",
        least=5.0,
    ),
    _above("trained above random diffusion weights, xM", REFERENCE, "full-random-weights", "xm"),
    _above("trained above random diffusion weights, 3D", REFERENCE, "full-random-weights", "3d"),
    _above(f"UDA above {REFERENCE}, xM", "uda", REFERENCE, "xm"),
    _above(f"UDA above {REFERENCE}, 3D", "uda", REFERENCE, "3d"),
    _above("UDA with pseudo labels above UDA, xM", "uda-pl", "uda", "xm"),
    _above("UDA with pseudo labels above UDA, 3D", "uda-pl", "uda", "3d"),
)
