"""The type checker of the suite: beartype, for the first calls of each function in each test.

Checking every call takes about as long as the tests themselves. A function is prepared when it is first called.
"""

import sys
from collections.abc import Callable
from typing import Any

from beartype import beartype

CALLS = 3

_test = 0
_resting: list[Any] = []  # functions that are not checked until the next test


def begin_test() -> None:
    """Check every function again."""
    global _test
    _test += 1
    for function in _resting:
        function.__no_type_check__ = False
    _resting.clear()


def check_first_calls(signature: Callable) -> Callable:
    """Checks calls of ``signature``: jaxtyping makes it of a function's arguments, or of these and its result."""
    checked, test, calls = None, 0, 0

    def check(*args: object, **kwargs: object) -> object:
        nonlocal checked, test, calls
        checked = checked or beartype(signature)
        test, calls = _test, calls + 1 if test == _test else 1
        if calls == CALLS:
            function = sys._getframe(1).f_locals["fn"]  # jaxtyping leaves those alone that it finds marked
            function.__no_type_check__ = True
            _resting.append(function)
        return checked(*args, **kwargs)

    return check
