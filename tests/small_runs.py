"""Runs of a few steps of a tiny network, on forty tiny pictures."""

import socket
from pathlib import Path

import torch

from lead_ray.artefacts import RunFolder
from lead_ray.augmentation.views import ViewSettings
from lead_ray.images import feed
from lead_ray.models.trunk import TrunkSettings
from lead_ray.objectives.byol import ByolSettings
from lead_ray.pretrain import Pretrain
from lead_ray.train import Optim
from lead_ray.work import open_images, work
from lead_ray.worker import Worker

STEPS = 8


def stage1(kind: type[Pretrain], data: Path, out: Path, **changes) -> Pretrain:
    """Stage 1 that reports every step and keeps every second."""
    settings = {
        "optim": Optim(lr=0.05, batch_size=16, steps=STEPS),
        "precision": "fp32",
        "report_every": 1,
        "checkpoint_every": 2,
        "device": "cpu",
        "trunk": TrunkSettings(depth=18, width=0.125),
        "objective": ByolSettings(hidden=32, dim=16),
        "views": ViewSettings(size=32),
    }
    return kind(data=data, out=out, **settings | changes)


def alone(run: Pretrain, shares: int, threads: int) -> RunFolder:
    """The run in this process, which stands for so many workers that each compute with so many threads."""
    before = torch.get_num_threads()
    worker, folder = Worker(shares=shares), run.open()
    torch.set_num_threads(threads)
    try:
        for _ in work(run, folder, open_images(run, worker, feed.in_threads), worker):
            pass
    finally:
        torch.set_num_threads(before)
    return folder


def losses(folder: RunFolder) -> list[float]:
    """Of every step, each once."""
    history = folder.metrics()
    assert [metrics["step"] for metrics in history] == list(range(1, len(history) + 1))
    return [metrics["loss"] for metrics in history]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens to just now, beyond those of Ray's workers."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def node_ports() -> dict[str, int]:
    """For a node of ray.cluster_utils.Cluster: Ray ends one whose agents take more than 15 seconds to choose these."""
    names = ("metrics_export_port", "metrics_agent_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    return dict(zip(names, free_ports(len(names)), strict=True))
