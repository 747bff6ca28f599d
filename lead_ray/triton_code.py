"""Triton where there is one, for kernels on GPUs: it comes with torch on Linux."""

import inspect
import os
from collections.abc import Callable

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what it does anyway, and warns of

try:
    import triton
    from triton import language as tl
    from triton.language import constexpr
except ImportError:  # a torch without GPUs, or not Linux: no kernel is called then
    triton, tl, constexpr = None, None, int

__all__ = ["constexpr", "kernel", "tl", "triton"]


def kernel(function: Callable) -> Callable:
    """A kernel, or what a kernel calls; tests put shape checks around functions, which a kernel cannot have."""
    return function if triton is None else triton.jit(inspect.unwrap(function))
