"""What a score is worth depends on how it was counted: the protocol that is stored with each one."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ... import __version__
from ..datasets.splits import SPLIT_RULE
from .settings import FusionRule

__all__ = ["ScoreProtocol", "code_version"]

_PACKAGE = Path(__file__).resolve().parents[2]


@cache
def code_version() -> str:
    """The package's version and a digest of its source, such as ``0.1.0+1f2e3d4c``: equal only for equal code."""
    folders = [_PACKAGE / name for name in ("cache", "pipeline", "stages")]
    files = [*_PACKAGE.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"


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
