"""Two studies at their smallest, or one, or a search, in a process of their own that is killed when it is told to.

python tests/small_studies.py DATA OUT WORKERS [driver] [trial] [one] [search]
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import ray
import torch

MARK = "SMALL_STUDIES"  # a variable that tells this study's processes from others'
STUDIES = Path(__file__).parents[1] / "studies"


def once(marker: Path, kill: Callable[[], bool]) -> None:
    """Call until it has killed, which the marker remembers: the same command does it once."""
    while not marker.exists():
        time.sleep(0.02)
        if kill():
            marker.touch()


def one_core() -> None:
    """Ray's processes each on a core, any: they take as many threads as they have cores."""
    os.sched_setaffinity(0, {random.choice([*os.sched_getaffinity(0)])})


def training(out: Path, finished: int) -> bool:
    """Whether so many runs are finished and the next has begun to train."""
    return finished <= len([*out.glob("*/result.json")]) < len([*out.glob("*/metrics.jsonl")])


def kill_driver(out: Path) -> bool:
    """This process."""
    (out / "killed-driver").touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def kill_trial(out: Path) -> bool:
    """The process of the trial."""
    mark, trials = f"{MARK}={out}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone since, or another user's
            if (process / "cmdline").read_bytes().startswith(b"ray::ImplicitFunc"):
                trials += [int(process.name)] * (mark in (process / "environ").read_bytes().split(b"\0"))
    for trial in trials:
        os.kill(trial, signal.SIGKILL)
    return bool(trials)


def main(data: Path, out: Path, workers: int, ends: list[str]) -> None:
    # One thread, on Ray too: sums in another order would grow to other numbers within a few steps.
    torch.set_num_threads(1)
    if workers:
        os.environ[MARK] = str(out)
        ray.init = partial(ray.init, runtime_env={"worker_process_setup_hook": one_core})
    sys.path.insert(0, str(STUDIES))
    import ablate_annotations
    import ablate_dims
    import ablate_temperature
    import presets

    presets.Quick.steps, presets.Quick.limit = (0, 6, 6), 16
    presets.Quick.dense_steps = 9  # of a search: budgets of 1, 3 and 9
    presets.Quick.dims, presets.Quick.counts = (), (1, 5)
    presets.Quick.prepare = lambda self: None
    presets.Quick.columns = ("MAFL", "300W")
    presets.Quick.sets = presets.Quick.sets | {"300W": presets.TestSet("missing")}  # its measurements fail
    presets.OFTEN |= {"report_every": 1, "checkpoint_every": 1}
    alone = "trial" not in ends  # else the trial is killed first, and the driver in the next training
    kills = {
        "trial": lambda: training(out, 0) and kill_trial(out),
        "driver": lambda: training(out, 2 if alone else 1) and kill_driver(out),
    }
    for end in kills.keys() & ends:
        threading.Thread(target=once, args=(out / f"killed-{end}", kills[end]), daemon=True).start()
    common = {"preset": "quick", "data": data, "out": out, "workers": workers, "device": "cpu"}
    if "search" in ends:
        presets.Quick.repeats = (0,)
        ablate_temperature.main(ablate_temperature.Temperature(trials=2, grid=(), **common))
        return
    ablate_dims.main(ablate_dims.Dims(heads=((8, 0),), **common))
    if "one" in ends:
        return
    ablate_annotations.main(ablate_annotations.Annotations(**common))


if __name__ == "__main__":
    data, out, workers, *ends = sys.argv[1:]
    main(Path(data), Path(out), int(workers), ends)
