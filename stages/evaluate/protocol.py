"""What a score is worth depends on how it was counted: the protocol that is stored with each one."""

from dataclasses import dataclass

from ...version import code_version
from ..datasets.splits import SPLIT_RULE
from .settings import FusionRule

__all__ = ["ScoreProtocol"]


@dataclass(frozen=True, kw_only=True)
class ScoreProtocol:
    """Everything one must know to compare a score with another one, or to get it again."""

    dataset: str
    index: str  #: digest of the data set's index
    cameras: tuple[str, ...]
    domain: str
    split: str
    merge: str
    checkpoint: str
    step: int  #: training steps behind the checkpoint
    seed: int
    features: str  #: fingerprint of the feature cache, or of the online extractor
    head: str  #: reading of the fusion module: "distil" or "refine"
    reached: int | None = None  #: steps that the run had done when it was scored; earlier cards do not say
    planned: int | None = None  #: steps that it is to do
    fusion: FusionRule = "sum"  #: of the reading "fused"; cards from before there was a choice name none
    split_rule: str = SPLIT_RULE
    code: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", self.code or code_version())
