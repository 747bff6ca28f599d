"""Triton where there is one, for kernels on GPUs: it comes with torch on Linux."""

import inspect
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lead_ray.machine import has_triton

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what it does anyway, and warns of

try:
    import triton
    from triton import language as tl
    from triton.language import constexpr
except ImportError:  # a torch without GPUs, or not Linux: no kernel is called then
    triton, tl, constexpr = None, None, int

__all__ = ["constexpr", "kernel", "serves", "serves_module", "tl", "triton"]


def kernel(function: Callable) -> Callable:
    """A kernel, or what a kernel calls; tests put shape checks around functions, which a kernel cannot have."""
    return function if triton is None else triton.jit(inspect.unwrap(function))


def serves(device: torch.device) -> bool:
    """Whether kernels run there: on a GPU, where Triton is installed and LEAD_RAY_TRITON=0 does not forbid it."""
    return device.type == "cuda" and triton is not None and has_triton()


def serves_module(module: nn.Module, features: Tensor) -> bool:
    """Whether a kernel can take the place of a module: on a GPU, on maps that are channels last, without hooks."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return (
        serves(features.device)
        and not any(hooks)
        and features.numel() > 0
        and features.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and features.is_contiguous(memory_format=torch.channels_last)
    )
