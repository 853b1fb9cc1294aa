"""Output and exit of commands: logging on stderr, results on stdout, exit codes, signals."""

import errno
import functools
import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from ..errors import Xd3dError
from ..processes import is_first_process

__all__ = ["Commands", "Outcome", "conclude", "has_colours", "run_command_line", "set_up_logging"]

log = logging.getLogger(__name__)

_STDERR = 2  #: the file descriptor

#: Remedies of system errors, by errno.
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some disk space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a location with read and write access"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "move away what occupies the path of a file or folder"
    ),
    errno.ENAMETOOLONG: "shorten the name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def set_up_logging(verbose: bool) -> None:
    """Configures logging to stderr: messages from INFO on, with ``verbose`` from DEBUG on.

    In a process group only the first process logs messages below WARNING.
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("xd3d").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: record.levelno >= logging.WARNING or is_first_process())


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a command: ``result`` is printed with ``--json``, ``text`` (also as ``str``) without.

    ``exit_code`` is that of the command: 0, or 1 if a part of the work could not be done.
    """

    result: Mapping[str, Any]
    text: str
    exit_code: int = 0

    def __str__(self) -> str:
        return self.text


def has_colours() -> bool:
    """Returns whether stdout is a terminal that may show colours (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def conclude(outcome: Outcome, as_json: bool) -> None:
    """Prints ``outcome`` on stdout, as text or as one line of JSON, and exits with its exit code.

    In a process group only the first process prints.
    """
    if is_first_process():
        text = json.dumps(outcome.result, allow_nan=False) if as_json else outcome.text.rstrip()
        encoding = sys.stdout.encoding or "utf-8"  # it may not encode every character of a file name
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    raise typer.Exit(outcome.exit_code)


class Commands(typer.Typer):
    """A group of commands: functions that return an ``Outcome``. It is printed, as JSON with the option ``--json``."""

    def command(  # type: ignore[override]  # it takes other functions
        self, *names: str, **options: Any
    ) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
        """Returns a decorator that adds a command; the function itself stays as it is."""

        def add(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
            typer.Typer.command(self, *names, **options)(_printing(function))
            return function

        return add


_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def _printing(function: Callable[..., Outcome]) -> Callable[..., None]:
    """Returns ``function`` with the option ``--json``, which prints the outcome and exits."""

    @functools.wraps(function)
    def command(*, as_json: bool, **options: Any) -> None:
        conclude(function(**options), as_json)

    parameters = inspect.signature(function).parameters.values()
    added = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Json)
    command.__signature__ = inspect.Signature([*parameters, added])  # type: ignore[attr-defined]
    return command


def run_command_line(command: Callable[[], Any]) -> NoReturn:
    """Runs the command line and exits with its exit code.

    Errors of xd3d, of the disk and of memory are printed without a traceback; ``--verbose`` shows that of the latter.
    TF32 is disabled on GPUs unless ``NVIDIA_TF32_OVERRIDE`` is set.
    """
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        command()
        sys.exit(0)
    except Xd3dError as error:
        sys.stderr.write(f"xd3d: {error}\n")
        sys.exit(error.exit_code)
    except (OSError, MemoryError, RuntimeError) as error:
        if not (refusal := _refusal(error)):
            raise
        log.debug("Where it happened", exc_info=True)
        sys.stderr.write(f"xd3d: {refusal}, then run the same command again. Finished work is kept\n")
        sys.exit(1)


def _refusal(error: OSError | MemoryError | RuntimeError) -> str:
    """Returns a description and remedy of a system error; empty for an error of the program."""
    if isinstance(error, OSError):
        return f"The system refused ({error}); {_REMEDIES.get(error.errno or 0, 'look at the disk and the network')}"
    said = " ".join(str(error).split())
    # PyTorch has no class of its own for a refusal of memory on the CPU, and importing it takes seconds.
    if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
        return f"The memory does not suffice ({said[:200]}); work on less at once"
    return ""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Raises SystemExit, so that files and progress bars are closed; code 130 after SIGINT, 143 after SIGTERM.

    The signal may interrupt a write to ``sys.stderr``, whose buffer is not reentrant; the message is written directly.
    """
    name = signal.Signals(number).name
    text = f"\nxd3d: stopped by {name}. Finished work is kept: run the same command again to resume.\n"
    with suppress(OSError):  # stderr may be closed
        os.write(_STDERR, text.encode())
    sys.exit(128 + number)
