"""The type checker of the suite: beartype, for the first call in each test of functions that take or return arrays.

Checking every call of every function takes about as long as the tests themselves. Types that are not arrays are left
to mypy. A function is prepared when it is first called.
"""

import sys
from collections.abc import Callable
from typing import Any

from beartype import beartype

_resting: list[Any] = []  # functions that are not checked until the next test


def begin_test() -> None:
    """Check every function that has arrays again."""
    for function in _resting:
        function.__no_type_check__ = False
    _resting.clear()


def check_first_call(signature: Callable) -> Callable:
    """Checks calls of ``signature``: jaxtyping makes it of a function's arguments, or of these and its result."""
    checked = None
    has_arrays = any("jaxtyping" in repr(hint) for hint in signature.__annotations__.values())

    def check(*args: object, **kwargs: object) -> object:
        nonlocal checked
        function = sys._getframe(1).f_locals["fn"]  # jaxtyping leaves those alone that it finds marked
        function.__no_type_check__ = True
        if not has_arrays:
            return None
        _resting.append(function)
        checked = checked or beartype(signature)
        return checked(*args, **kwargs)

    return check
