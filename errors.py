"""The exceptions that xd3d raises.

Each class also inherits from the builtin exception that a caller would expect, so either can be caught. A message says
what happened, what was found (or the nearest valid choices), and the command or setting that fixes it.
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
    """Base class; the command line prints the message without a traceback and exits with ``exit_code``."""

    exit_code = 1


class ConfigError(Xd3dError, ValueError):
    """A setting, preset name or option is unknown, out of range, or contradicts another one."""

    exit_code = 2


class DataError(Xd3dError, ValueError):
    """A file of a data set violates its format."""


class MissingDataError(Xd3dError, FileNotFoundError):
    """A data root, an index or a file of a data set is missing."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class ModelError(Xd3dError, ValueError):
    """An image model cannot be found, is incomplete, or lacks a requested part."""


class CacheError(Xd3dError, ValueError):
    """A feature cache is damaged, incomplete, in use, or of an unsupported format."""


class CacheMismatchError(CacheError):
    """A feature cache was made with other settings than the current ones."""


class UnfinishedUpgradeError(CacheError):
    """A feature cache is between two formats: its upgrade was interrupted in the last step, or is still running."""


class DiskSpaceError(Xd3dError, OSError):
    """The disk has too little free space."""


class StoreError(Xd3dError, OSError):
    """An object store does not answer, refuses the request, or does not exist."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class RunError(Xd3dError, RuntimeError):
    """A training run cannot be started, resumed or evaluated."""


class BackendError(Xd3dError, RuntimeError):
    """A device or a sparse convolution backend is unavailable, broken or misused."""


class ClusterError(Xd3dError, RuntimeError):
    """Workers or their scheduler cannot be reached, do not match this run, or died too often."""


_SHOWN = 20  #: choices that a hint lists at most


def nearest(name: str, choices: Iterable[str], *, prefix: str = "") -> str:
    """Returns a hint for a mistyped ``name``: the closest choice, or the first choices if none is close.

    ``prefix`` is put before the choices.
    """
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    found = [f"{prefix}{each}" for each in close or known]
    if close:
        return f"did you mean '{found[0]}'?"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"choose one of: {', '.join(found[:_SHOWN])}{more}"
