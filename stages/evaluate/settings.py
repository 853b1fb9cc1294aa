"""Settings of the evaluation: which split is scored, and how a class that occurs nowhere enters the mean."""

from typing import Literal

from pydantic import Field

from ...settings import Settings
from ..datasets.settings import SplitName

__all__ = ["AbsentRule", "EvaluateSettings"]

AbsentRule = Literal["exclude", "zero", "one"]


class EvaluateSettings(Settings):
    """How scores are counted; every score stores these values with it."""

    split: SplitName = Field(
        default="test", description="Split that 'xd3d evaluate' scores by default (test = the official val scenes)"
    )
    absent: AbsentRule = Field(
        default="exclude",
        description="IoU of a class that is neither in labels nor predictions: left out of the mean and named,"
        " or counted as zero (as xMUDA's script does) or one (as PointDR's does)",
    )
