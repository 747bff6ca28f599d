"""Work of ours shared out over torch's own threads, on a CPU.

After every operation torch's threads stay on their cores for a while, in case there is more to do. Threads of a second
pool would wait for those cores, and torch's for ours: between convolutions that takes longer than the work itself.
"""

import ctypes
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def shared(part: Callable[[int, int], None], count: int) -> None:
    """part(first, last) for ranges that are `count` together, one for every thread that torch has.

    They run side by side as far as part lets go of the interpreter, as machine code does (lead_ray.machine_code). What
    a part raises is raised here, after those that had begun have ended.
    """
    threads = max(1, min(torch.get_num_threads(), count))
    ranges = deque(pairwise(count * i // threads for i in range(threads + 1)))
    errors = []

    def body(_=None) -> None:
        try:
            while not errors:
                try:
                    limits = ranges.popleft()
                except IndexError:
                    return
                part(*limits)
        except BaseException as error:
            errors.append(error)

    if threads > 1 and (parallel := _parallel()):
        parallel(_Body(body), None, threads, 0)
    elif threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(body, range(threads)))
    body()  # the one part, or what nobody took: OpenMP may give fewer threads than were asked for
    if errors:
        raise errors[0]


@cache
def _parallel() -> Callable | None:
    """GOMP_parallel of the OpenMP library that torch itself is linked with, if it is GNU's or speaks its language."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        found = ctypes.CDLL(str(library)).GOMP_parallel  # looked up in what the library depends on, too
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = [_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return found
