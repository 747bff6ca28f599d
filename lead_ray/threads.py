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
from threading import get_ident

import torch

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def shared(part: Callable[[int, int], None], count: int) -> None:
    """part(first, last) for ranges that are `count` together, one for every thread that torch has.

    They run side by side as far as part lets go of the interpreter, as machine code does (lead_ray.machine_code). What
    a part raises is raised here, after those that had begun have ended. As with torch's own operators, each thread of
    Python's that asks has a team of its own, and a process that was forked after the first call has none.
    """
    number = torch.get_num_threads()
    parts = max(1, min(number, count))
    ranges = deque(pairwise(count * i // parts for i in range(parts + 1)))
    entered, errors = set(), []

    def body(_=None) -> None:
        try:
            entered.add(get_ident())
            while not errors:
                try:
                    limits = ranges.popleft()
                except IndexError:
                    return
                part(*limits)
        except BaseException as error:
            errors.append(error)

    if parts > 1 and (parallel := _parallel()):
        parallel(_Body(body), None, number, 0)  # all of them: OpenMP lets those go that a team has no use for
        if get_ident() not in entered:  # Ctrl-C came before body could catch it, and C has nowhere to raise it
            raise KeyboardInterrupt
    elif parts > 1:
        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(body, range(parts)))
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
