"""What a person and a script see: logging on stderr, results on stdout, exit codes, and clean ends."""

import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import typer

from ..errors import Xd3dError
from ..processes import is_first_process

__all__ = ["Outcome", "conclude", "run_command_line", "set_up_logging"]

log = logging.getLogger(__name__)

_STDERR = 2  #: the file descriptor

#: What mends an error of the system; the command can then be given again.
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some room on the disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "name a place that can be read and written"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "move away what is in the place of a file or folder"),
    errno.ENAMETOOLONG: "shorten the name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def set_up_logging(verbose: bool) -> None:
    """Send the log of xd3d to stderr: warnings and news, with ``verbose`` the details too.

    Of several processes that have joined each other the first tells the news.
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("xd3d").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: record.levelno >= logging.WARNING or is_first_process())


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command did: ``result`` for ``--json``, ``text`` for a person, and the exit code."""

    result: Mapping[str, Any]
    text: str
    exit_code: int = 0


def conclude(outcome: Outcome, as_json: bool) -> None:
    """Print ``outcome`` on stdout, as text or as one line of JSON, and end the command with its exit code.

    Of several processes that have joined each other the first prints.
    """
    if is_first_process():
        text = json.dumps(outcome.result, allow_nan=False) if as_json else outcome.text.rstrip()
        encoding = sys.stdout.encoding or "utf-8"  # which may lack letters of a file's name
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    raise typer.Exit(outcome.exit_code)


def run_command_line(command: Callable[[], Any]) -> NoReturn:
    """Run the command line and leave with its exit code.

    Errors of ours, of the disk and of memory are printed without a traceback; ``--verbose`` shows that of the latter.
    Float32 convolutions of a GPU are float32, not TF32 as PyTorch has it by default, unless the environment says so.
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
        sys.stderr.write(f"xd3d: {refusal}, then give the same command again. What was finished is kept\n")
        sys.exit(1)


def _refusal(error: OSError | MemoryError | RuntimeError) -> str:
    """What the system refused and what to do about it; nothing for an error that is the program's own."""
    if isinstance(error, OSError):
        return f"The system refused ({error}); {_REMEDIES.get(error.errno or 0, 'look at the disk and the network')}"
    said = " ".join(str(error).split())
    # PyTorch has no class of its own for a refusal of memory on the CPU, and importing it takes seconds.
    if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
        return f"The memory does not suffice ({said[:200]}); work on less at once"
    return ""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind as from an error, so that files are closed and bars end; 130 after SIGINT, 143 after SIGTERM.

    It may come in the middle of a write to ``sys.stderr``, whose buffer can be entered only once: it writes past it.
    """
    name = signal.Signals(number).name
    text = f"\nxd3d: stopped by {name}. What was finished is kept: give the same command again to go on.\n"
    with suppress(OSError):  # nobody may be listening any more
        os.write(_STDERR, text.encode())
    sys.exit(128 + number)
