"""Python functions of numbers and arrays as machine code, by numba."""

import inspect
from collections.abc import Callable
from typing import Any

from numba import njit

HONEST = {"nsz", "arcp", "contract"}
"""Freedoms of arithmetic that leave what is not a number so, as training must see it."""


def compiler(arithmetic: bool | set[str]) -> Callable[[Callable], Callable]:
    """A decorator: compile at the first call, and keep the machine code beside the source.

    Without the interpreter's lock, so that threads share a batch. What is kept is renewed when the function's own file
    changes, and no other: what it calls belongs in one file with it, and whoever changes what is set here must change
    those files too, or empty their __pycache__. It remembers its arguments' classes by name, so
    arguments are plain tuples. Arithmetic: numba's fastmath.
    """

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        plain = inspect.unwrap(function)  # tests put shape checks around functions
        return njit(nogil=True, cache=True, fastmath=arithmetic, error_model="numpy")(plain)

    return compiled
