"""Which commands several processes share, and how the work of stage one is shared out: by one option alone."""

import re
from dataclasses import dataclass

from ..errors import ConfigError
from ..processes import torchrun_processes

__all__ = ["ALONE", "Sharing", "require_one_process"]

TOGETHER = "train"  #: the command whose processes join each other


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """At most one of: ``workers`` processes here, those of a ``scheduler``, or one ``part`` (i, n), i from 1 to n."""

    workers: int | None = None
    scheduler: str | None = None
    part: tuple[int, int] | None = None

    @classmethod
    def from_options(cls, workers: int | None, scheduler: str | None, shard: str | None, *, dry_run: bool) -> "Sharing":
        """Read the options of the command line.

        Raises:
            ConfigError: they contradict each other, or ``shard`` is not I/N.
        """
        given = {"--workers": workers, "--scheduler": scheduler, "--shard": shard}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ConfigError(f"{' and '.join(names)} are different ways to share the work out; give one of them")
        if names and dry_run:
            raise ConfigError(f"--dry-run forecasts a run of one process; leave {names[0]} out and divide its time")
        return cls(workers=workers, scheduler=scheduler, part=None if shard is None else _part(shard))


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    i, n = map(int, found.groups()) if found else (0, 0)
    if not 1 <= i <= n:
        raise ConfigError(f"--shard takes I/N with I from 1 to N, such as 2/8 for the second of eight; found {text!r}")
    return i, n


def require_one_process(command: str) -> None:
    """Make sure that ``torchrun`` did not start several processes of a ``command`` that is the work of one.

    Raises:
        ConfigError: it did; the message says how to share the work out, if it can be.
    """
    if command == TOGETHER or (count := torchrun_processes()) == 1:
        return
    way = f"start it by itself: xd3d {command}"
    if command == "extract-features":
        way = (
            "share its images out with --workers N, for N processes of this machine with a GPU each, or with"
            " --shard I/N in jobs of their own (docs/cluster.md)"
        )
    raise ConfigError(
        f"torchrun started {count} processes of 'xd3d {command}', and each would do all of its work: only"
        f" 'xd3d {TOGETHER}' is shared like that. Without torchrun, {way}"
    )


ALONE = Sharing()  #: the work is done here, by one process
