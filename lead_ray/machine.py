"""The machine that this runs on: what it is, and how to get along with its C library."""

import ctypes
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_triton() -> bool:
    """Whether Triton is installed, for kernels on GPUs, and LEAD_RAY_TRITON=0 in the environment does not forbid it."""
    return os.environ.get("LEAD_RAY_TRITON", "1") != "0" and find_spec("triton") is not None


@contextmanager
def without_triton() -> Iterator[None]:
    """torch's own kernels for a while, in this process: what others are compared with."""
    with variables({"LEAD_RAY_TRITON": "0"}):
        yield


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """Variables of the environment for a while, also of processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def keep_freed_memory() -> None:
    """Let the C library keep what is freed instead of handing it back to the kernel; nothing where it is not glibc.

    Every step frees and takes the same large blocks; having the kernel clear them anew took half of stage 2's time
    on a CPU.
    """
    with suppress(OSError, AttributeError):
        allocator = ctypes.CDLL("libc.so.6").mallopt
        allocator(ctypes.c_int(-4), ctypes.c_int(0))  # M_MMAP_MAX: large blocks come from the heap too
        allocator(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD: the heap never shrinks


def native_bf16(kind: str) -> bool:
    """Whether a "cuda" or "cpu" device multiplies bf16 itself; pretending to takes many times as long."""
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def sent(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """A small tensor of this process on another device, without this process waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def quick_products(device: str, quick: bool = True) -> Iterator[None]:
    """Round factors of float32 products to bf16 on a CPU that does so (AMX), to TF32 on a GPU; sums are float32's.

    Cosines of unit vectors are then right within about 2e-4 on a CPU. These are torch's own switches, and so hold for
    all threads of the process until it is over.
    """
    import torch

    cpu, kinds = device == "cpu", torch.backends
    switches = (kinds.mkldnn.matmul, kinds.mkldnn.conv) if cpu else (kinds.cuda.matmul, kinds.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches if quick else ():
            switch.fp32_precision = "bf16" if cpu else "tf32"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Round numbers below 1e-38 to 0 in this thread for a while.

    A softmax of DVE's is full of them, and its matrix products took ten times as long on a CPU.
    """
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread of torch on the CPU for a while: a host's small tensors are done before others could join in.

    Where all cores are busy, waiting for those that joined takes a hundred times as long as the work.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quickest_convolutions() -> Iterator[None]:
    """Let cuDNN try its algorithms on every new shape and keep the quickest: shapes of training do not change.

    Which is the quickest may change from run to run, and with it how sums are rounded.
    """
    import torch

    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def environment() -> dict[str, Any]:
    """Versions, commit and devices: what a number needs beside it to be believed."""
    import torch

    packages = ("torch", "torchvision", "ray", "numpy", "pillow", "pyarrow")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "commit": _commit(),
        "processor": _processor(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a wheel, or no git


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
