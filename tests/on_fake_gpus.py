"""Two workers on GPUs that are not there: python on_fake_gpus.py DATA OUT, on the cluster that RAY_ADDRESS names.

Prints, as JSON, the GPUs of the cluster before the run and at most during it, and the seconds until none was left.
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


def gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def main() -> None:
    data, out = map(Path, sys.argv[1:])
    ingest.connect()
    before, most, over = gpus(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.2):
            most = max(most, gpus())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    # What --device cuda asks for where there is no GPU yet; the workers then compute on CPUs.
    asked = launch.worker_resources({"CPU": 2.0}, 2, use_gpu=True)
    launch.worker_resources = lambda *_: asked
    folder = launch.run(stage1(Pretrain, data, out, workers=2))
    over.set()
    watcher.join()
    end = time.monotonic()
    while gpus():
        time.sleep(0.2)
    print(json.dumps({"before": before, "most": most, "seconds": time.monotonic() - end, "losses": losses(folder)}))


if __name__ == "__main__":
    main()
