"""What workers ask of a cluster."""

import math
import os

from lead_ray.worker import Crew

LEAST_CPU = 0.125  # a binary fraction, for Ray counts in floating point how many workers a node has room for


def wants_gpus(device: str, workers: int, cluster: dict[str, float]) -> bool:
    """auto: GPUs if there is one for each worker."""
    return device == "cuda" or (device == "auto" and cluster.get("GPU", 0) >= workers)


def worker_resources(cluster: dict[str, float], crew: Crew, use_gpu: bool) -> dict[str, float]:
    """What each worker asks for: a GPU if wanted, and its share of the cores; one is left to Ray Data.

    Were nothing left, Ray Data's tasks would wait for ever, and the workers for them. Workers whose number changes may
    come to lie on any node: each asks for less than a core, and leaves the rest of it.

    Raises: ValueError when the cluster cannot meet it and nothing says that it might grow.
    """
    grows = bool(os.environ.get("RAY_ADDRESS"))  # a cluster joined by address may have an autoscaler
    workers, cpus, gpus = crew.fewest, cluster.get("CPU", 0), cluster.get("GPU", 0)
    if use_gpu:
        if gpus < workers and grows:
            print(f"the cluster has {gpus:.0f} GPUs, the run needs {workers}; waiting for it to grow", flush=True)
        elif gpus < workers:
            remedy = f"--workers {gpus:.0f}" if gpus else "--device cpu"
            raise ValueError(f"workers={workers} need a GPU each, the cluster has {gpus:.0f}: use {remedy}")
        return {"CPU": 1.0 if cpus > workers and not crew.elastic else LEAST_CPU, "GPU": 1.0}
    least = workers * (1 - LEAST_CPU) if crew.elastic else 1 + workers * LEAST_CPU
    if cpus < least and grows:
        print(f"the cluster has {cpus:g} CPUs, the run needs {least:g}; waiting for it to grow", flush=True)
    elif cpus < least:
        raise ValueError(
            f"workers={workers} need {least:g} CPUs, Ray Data's included, the cluster has {cpus:g}: "
            "use --workers 0 for this process alone"
        )
    if crew.elastic:
        return {"CPU": 1 - LEAST_CPU}
    share = min((cpus - 1) / workers, max(1, (cpus - 1) // workers))
    return {"CPU": max(LEAST_CPU, math.floor(100 * share) / 100)}
