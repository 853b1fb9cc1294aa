"""Settings of the evaluation: which split is scored, how predictions are fused, and how absent classes count."""

from typing import Literal

from ...errors import ConfigError
from ...settings import Settings
from ..datasets.settings import SplitName

__all__ = ["AbsentRule", "Adaptation", "EvaluateSettings", "FusionRule", "adaptation_name", "norm_window"]

Adaptation = Literal["none", "norm"]
AbsentRule = Literal["exclude", "zero", "one"]
FusionRule = Literal["product-prior", "product", "sum"]


class EvaluateSettings(Settings):
    """How scores are counted; these values are stored with every score."""

    split: SplitName = "test"
    """Split that 'xd3d evaluate' scores by default (test = the official val scenes)"""
    absent: AbsentRule = "exclude"
    """IoU of a class that is in neither labels nor predictions: excluded from the mean and reported, or counted as zero
    (as xMUDA's script does) or one (as PointDR's does)"""
    fusion: FusionRule = "product-prior"
    """How all predictions of a point are fused into its class (modality 'fused'): their product, weighted by the
    image's confidence and divided by the class prior; the same without the prior; or the sum of both softmaxes (xM)"""


def adaptation_name(norm_window: int | None) -> str:
    """Returns how a network is adapted at test time: "none", "norm" (each frame alone) or "norm-16" (16 frames)."""
    return "none" if norm_window is None else "norm" if norm_window == 1 else f"norm-{norm_window}"


def norm_window(adapt: Adaptation, window: int | None = None) -> int | None:
    """Returns the number of frames whose statistics ``adapt`` "norm" normalises with, by default 1; None without it.

    Raises:
        ConfigError: ``window`` is given without "norm", or is not positive.
    """
    if window is not None and (adapt != "norm" or window < 1):
        raise ConfigError(
            f"--window {window} is the number of frames of --adapt norm, at least 1; give both, or neither"
        )
    return (window or 1) if adapt == "norm" else None
