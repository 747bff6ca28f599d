"""Kills and resumes: python soak.py DATA OUT KILLS. Prints, as JSON, at what the runs were killed and how they ended.

A run goes on in one process after another, each a fork of this one, which has imported and compiled everything and run
no backward pass. Each is killed by SIGKILL as it does something for the n-th time, n drawn: takes a step, writes a line
of metrics, saves a checkpoint, syncs a file, puts it in its place, removes an old one. When a run is finished, the next
begins.
"""

import hashlib
import json
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file
from small_runs import losses, stage1

from lead_ray import artefacts, launch, storage, train
from lead_ray.artefacts import RunFolder
from lead_ray.images import feed
from lead_ray.pretrain import Pretrain
from lead_ray.train import Optim
from lead_ray.work import open_images, view_pairs
from lead_ray.worker import Worker

STEPS = 40
MOST = 16  # of these things a process does before it is killed


def killing(count: int, told: int) -> None:
    """Die at the count-th of the things that are watched, and say through the pipe at which."""
    left = count

    def watch(owner: object, name: str) -> None:
        done = getattr(owner, name)

        def watched(*arguments, **options):
            nonlocal left
            left -= 1
            if left == 0:
                os.write(told, name.encode())
                os.kill(os.getpid(), signal.SIGKILL)
            return done(*arguments, **options)

        setattr(owner, name, watched)

    watch(train, "train_step")
    watch(torch, "save")
    watch(storage, "append")
    watch(storage, "remove")
    watch(os, "fsync")
    watch(Path, "replace")


def forked(settings: Pretrain, count: int) -> str:
    """Train in a process of its own, killed at the count-th thing; returns what that was, "" if it came to the end."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            killing(count, write)
            launch.run(settings)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with open(read) as told:
        at = told.read()
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"a run ended with status {status} instead of being killed")
    return at


def fingerprint(folder: RunFolder) -> str:
    """Of the weights and of the loss curve."""
    state = load_file(folder.path / "encoder.safetensors")
    weights = b"".join(state[name].numpy().tobytes() for name in sorted(state))
    return hashlib.sha256(weights + repr(losses(folder)).encode()).hexdigest()


def warm_up(settings: Pretrain) -> None:
    """Compile what draws views, and import what the first optimiser does, once for all processes."""
    images = open_images(settings, Worker(), feed.in_threads)
    next(view_pairs(settings, images(0)))
    train.make_optimizer(settings.build(), settings.optim)
    stamp = artefacts.environment()
    artefacts.environment = lambda: stamp  # it starts git


def main() -> None:
    data, out, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    draw, killed, ends, number = random.Random(0), Counter(), [], 0
    optim = Optim(lr=0.05, batch_size=16, steps=STEPS)
    undisturbed = stage1(Pretrain, data, out / "undisturbed", optim=optim, checkpoint_every=1)
    warm_up(undisturbed)
    while killed.total() < kills or (out / str(number)).exists():
        settings = stage1(Pretrain, data, out / str(number), optim=optim, checkpoint_every=1)
        last = killed.total() >= kills  # the run in hand comes to its end
        at = forked(settings, 0 if last else draw.randint(1, MOST))
        if at:
            killed[at] += 1
            continue
        ends.append(fingerprint(settings.open()))
        number += 1
    forked(undisturbed, 0)
    left = sorted(path.name for path in out.rglob("*") if path.name.endswith(".tmp"))
    print(json.dumps({"killed": killed, "ends": ends, "undisturbed": fingerprint(undisturbed.open()), "left": left}))


if __name__ == "__main__":
    main()
