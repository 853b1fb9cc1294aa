"""The version of the code: that of the release and a digest of the source."""

import hashlib
from functools import cache
from pathlib import Path

from . import __version__

__all__ = ["code_version"]

_PACKAGE = Path(__file__).resolve().parent


@cache
def code_version() -> str:
    """The package's version and a digest of its source, such as ``0.1.0+1f2e3d4c``: equal only for equal code."""
    folders = [_PACKAGE / name for name in ("cache", "pipeline", "stages")]
    inner = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml")]
    files = [*_PACKAGE.glob("*.py"), *inner]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"
