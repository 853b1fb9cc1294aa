"""Distribution over processes: the options of stage one, and which commands torchrun may start."""

import re
from dataclasses import dataclass

from ..errors import ConfigError
from ..processes import torchrun_processes

__all__ = ["ONE_PROCESS", "Sharing", "require_one_process"]

UNDER_TORCHRUN = ("train", "pretrain")  #: the commands that torchrun may start


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How stage one is distributed; at most one is set.

    ``workers``: local processes; ``scheduler``: address of a dask scheduler; ``part`` (i, n), i from 1 to n: this
    process takes every n-th shard.
    """

    workers: int | None = None
    scheduler: str | None = None
    part: tuple[int, int] | None = None

    @classmethod
    def from_options(cls, workers: int | None, scheduler: str | None, shard: str | None, *, dry_run: bool) -> "Sharing":
        """Reads the options of the command line.

        Raises:
            ConfigError: they contradict each other, or ``shard`` is not I/N.
        """
        given = {"--workers": workers, "--scheduler": scheduler, "--shard": shard}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ConfigError(f"{' and '.join(names)} are different ways to distribute the work; give one of them")
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
    """Refuses several processes that ``torchrun`` started of a ``command`` that runs in one.

    Raises:
        ConfigError: there are several; the message says how to distribute the work, if that is possible.
    """
    if command in UNDER_TORCHRUN or (count := torchrun_processes()) == 1:
        return
    way = f"start it by itself: xd3d {command}"
    if command == "extract-features":
        way = (
            "distribute its images with --workers N, for N processes of this machine with a GPU each, or with"
            " --shard I/N in jobs of their own (docs/cluster.md)"
        )
    raise ConfigError(
        f"torchrun started {count} processes of 'xd3d {command}', and each would do all of its work: only"
        f" 'xd3d {UNDER_TORCHRUN[0]}' and 'xd3d {UNDER_TORCHRUN[1]}' run under torchrun. Instead, {way}"
    )


ONE_PROCESS = Sharing()  #: this process does all the work
