"""Two studies at their smallest, or a search, in a process of their own that is killed when it is told to.

python tests/small_studies.py DATA OUT WORKERS [driver] [trial] [search]
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

STUDIES = Path(__file__).parents[1] / "studies"


def once(marker: Path, kill: Callable[[], bool]) -> None:
    """Call until it has killed, which the marker remembers: the same command does it once."""
    while not marker.exists():
        time.sleep(0.2)
        if kill():
            marker.touch()


def kill_driver(out: Path, results: int) -> bool:
    """This process, once so many runs are finished and the next has begun to train."""
    finished, begun = len([*out.glob("*/result.json")]), len([*out.glob("*/metrics.jsonl")])
    if finished < results or begun <= finished:
        return False
    (out / "killed-driver").touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def kill_trial(out: Path) -> bool:
    """The process of the trial that has begun to train its stage 2."""
    if not [*out.glob("stage2-*/metrics.jsonl")]:
        return False
    from ray.util.state import list_actors

    trials = list_actors(filters=[("class_name", "=", "ImplicitFunc"), ("state", "=", "ALIVE")])
    for trial in trials:
        os.kill(trial.pid, signal.SIGKILL)
    return bool(trials)


def main(data: Path, out: Path, workers: int, ends: list[str]) -> None:
    # One core, one thread, on Ray too: sums in another order would grow to other numbers within a few steps.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sys.path.insert(0, str(STUDIES))
    import ablate_annotations
    import ablate_dims
    import ablate_temperature
    import presets

    presets.Quick.steps, presets.Quick.limit = (0, 2, 6), 16
    presets.Quick.dense_steps = 9  # of a search: budgets of 1, 3 and 9
    presets.Quick.dims, presets.Quick.counts = (), (1, 5)
    presets.Quick.prepare = lambda self: None
    presets.Quick.columns = ("MAFL", "300W")
    presets.Quick.sets = presets.Quick.sets | {"300W": presets.TestSet("missing")}  # its measurements fail
    presets.OFTEN |= {"report_every": 1, "checkpoint_every": 1}
    kills = {"driver": lambda: kill_driver(out, 2), "trial": lambda: kill_trial(out)}
    for end in kills.keys() & ends:
        threading.Thread(target=once, args=(out / f"killed-{end}", kills[end]), daemon=True).start()
    common = {"preset": "quick", "data": data, "out": out, "workers": workers, "device": "cpu"}
    if "search" in ends:
        presets.Quick.repeats = (0,)
        ablate_temperature.main(ablate_temperature.Temperature(trials=2, grid=(), **common))
        return
    ablate_dims.main(ablate_dims.Dims(heads=((8, 0),), **common))
    ablate_annotations.main(ablate_annotations.Annotations(**common))


if __name__ == "__main__":
    data, out, workers, *ends = sys.argv[1:]
    main(Path(data), Path(out), int(workers), ends)
