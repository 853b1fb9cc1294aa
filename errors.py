"""Every error that xd3d raises on purpose.

Each class also inherits the builtin that a caller would expect, so library users can catch either. A message says what
happened, what was found (or the nearest valid choices), and the command or setting that mends it.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendError",
    "CacheError",
    "CacheMismatchError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "DiskSpaceError",
    "MissingDataError",
    "ModelError",
    "RunError",
    "StoreError",
    "UnfinishedUpgradeError",
    "Xd3dError",
    "nearest",
]


class Xd3dError(Exception):
    """Root of the tree; the command line prints it without a traceback and leaves with ``exit_code``."""

    exit_code = 1


class ConfigError(Xd3dError, ValueError):
    """A setting, preset name or option is unknown, out of range or contradicts another one."""

    exit_code = 2


class DataError(Xd3dError, ValueError):
    """A file of a data set does not hold what its format promises."""


class MissingDataError(Xd3dError, FileNotFoundError):
    """A data root, an index or a file of a data set is not where it should be."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class ModelError(Xd3dError, ValueError):
    """A diffusion model cannot be found, is incomplete, or lacks what was asked of it."""


class CacheError(Xd3dError, ValueError):
    """A feature cache is damaged, incomplete or of another format."""


class CacheMismatchError(CacheError):
    """A feature cache was made with other settings than the ones in force."""


class UnfinishedUpgradeError(CacheError):
    """A feature cache is between two formats: what upgraded it was stopped in the switch, or is at it just now."""


class DiskSpaceError(Xd3dError, OSError):
    """The disk has less room than the work needs."""


class StoreError(Xd3dError, OSError):
    """An object store does not answer, refuses, or is not there; nothing is known of what it holds."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class RunError(Xd3dError, RuntimeError):
    """A training run cannot start, go on or be evaluated."""


class BackendError(Xd3dError, RuntimeError):
    """A device or a sparse convolution backend is missing, broken or misused."""


class ClusterError(Xd3dError, RuntimeError):
    """Workers that share the work, or their scheduler, cannot be reached, do not fit, or died too often."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a hint for a mistyped ``name``: the closest choice, or every choice when none is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else "choose one of: " + ", ".join(known)
