"""Settings of the evaluation: how a class that occurs nowhere enters the mean."""

from typing import Literal

from pydantic import Field

from ...settings import Settings

__all__ = ["AbsentRule", "EvaluateSettings"]

AbsentRule = Literal["exclude", "zero", "one"]


class EvaluateSettings(Settings):
    """How scores are counted; every score stores these values with it."""

    absent: AbsentRule = Field(
        default="exclude",
        description="IoU of a class that is neither in labels nor predictions: left out of the mean and named,"
        " or counted as zero (as xMUDA's script does) or one (as PointDR's does)",
    )
