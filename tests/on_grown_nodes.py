"""Two workers that need a node each: python on_grown_nodes.py DATA OUT, on the cluster that RAY_ADDRESS names.

Prints, as JSON, the seats of the cluster before the run and at most during it, the seconds until none was left, and the
losses. Seats stand for GPUs: had the nodes made-up GPUs, NCCL would look for them.
"""

import json
import sys
import threading
import time
from pathlib import Path

import ray
from small_runs import losses, stage1

from lead_ray import ingest, launch
from lead_ray.pretrain import Pretrain
from lead_ray.resources import LEAST_CPU


def seats() -> int:
    return int(ray.cluster_resources().get("seat", 0))


def main() -> None:
    data, out = map(Path, sys.argv[1:])
    ingest.connect()
    before, most, over = seats(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.2):
            most = max(most, seats())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    launch.worker_resources = lambda *_: {"CPU": LEAST_CPU, "seat": 1.0}
    folder = launch.run(stage1(Pretrain, data, out, workers=2))
    over.set()
    watcher.join()
    end = time.monotonic()
    while seats():
        time.sleep(0.2)
    print(json.dumps({"before": before, "most": most, "seconds": time.monotonic() - end, "losses": losses(folder)}))


if __name__ == "__main__":
    main()
