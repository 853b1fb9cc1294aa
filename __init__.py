"""Cross-domain LiDAR semantic segmentation that pays for Stable Diffusion once.

Stage one turns camera images into cached image features and object agent queries; stage two trains a sparse 3D network
and its fusion module from that cache.

The names in ``__all__`` are the Python API: functions with the names and options of commands, ``load_run`` and
``open_cache``. They are imported on first use, so that ``import xd3d`` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline.caches import open_cache
    from .pipeline.jobs import evaluate, extract_features, predict, prepare, pretrain, report, synthesize, train
    from .pipeline.loaded_run import load_run
    from .pipeline.pseudo_labels import pseudo_label

__version__ = "0.2.0"
__all__ = [
    "__version__",
    "synthesize",
    "prepare",
    "extract_features",
    "open_cache",
    "pretrain",
    "train",
    "evaluate",
    "pseudo_label",
    "predict",
    "report",
    "load_run",
]

_MODULES = {
    "open_cache": "caches",
    "load_run": "loaded_run",
    "pseudo_label": "pseudo_labels",
}  #: the others are in ``jobs``


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f".pipeline.{_MODULES.get(name, 'jobs')}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
