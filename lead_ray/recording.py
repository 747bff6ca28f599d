"""A learner's passes, recorded once as CUDA graphs and replayed: kernels start as fast as a GPU runs them.

A step of a ResNet-50 is some thousand kernels, which a host starts one by one slower than that; a graph starts them
together. What is replayed is what was recorded, kernel by kernel, so results are the same.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WARM = 3
"""Passes before the recording, in which libraries choose their kernels."""


def recorded(
    learner: nn.Module, batches: Iterable[tuple[Tensor, ...]], precision: torch.dtype
) -> Iterator[tuple[Tensor, ...]]:
    """Record the learner's passes on views like the first ones; the same batches, from that one on.

    From now on the learner may only be called in training, with views of that size. Trained parameters may be loaded
    anew; frozen ones may not, for what is made of them once was recorded. What cannot be recorded, because it waits for
    the GPU or looks at its numbers, stays as it is, and says so.
    """
    batches = iter(batches)
    first = next(batches)
    try:
        with torch.cuda.device_of(first[0]), _unchanged(learner):
            learner.forward = Recording(learner, first, precision)
    except NotRecordable as reason:
        print(f"{type(learner).__name__}: kernels are started one by one, for CUDA graphs do not take them ({reason})")
    return chain([first], batches)


@contextmanager
def _unchanged(learner: nn.Module) -> Iterator[None]:
    """What a pass in training leaves in buffers, such as running statistics, is undone. Frozen modules' stay untouched:
    a write, even of the same, would tell whoever made something of them that it is out of date."""
    kept = [
        (buffer, buffer.clone())
        for module in learner.modules()
        if module.training
        for buffer in module.buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


class NotRecordable(Exception):
    """With the reason."""


@contextmanager
def unrecorded(learner: nn.Module) -> Iterator[None]:
    """The learner's own passes for a while, where torch can look at them."""
    forward = vars(learner).pop("forward", None)
    try:
        yield
    finally:
        if forward is not None:
            learner.forward = forward


class Recording:
    """Takes the place of a learner's forward: views -> metrics, whose loss carries gradients to the parameters.

    What it returns is overwritten by the next call, and so are the gradients: each step begins without any, and none
    are added up over calls.
    Raises: NotRecordable.
    """

    def __init__(self, learner: nn.Module, views: tuple[Tensor, ...], precision: torch.dtype):
        self.views = tuple(view.clone() for view in views)
        self.parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        # No cache: a copy in bf16 must be made anew at every step, by the graph.
        how = {"enabled": precision != torch.float32, "cache_enabled": False}
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM):
                with torch.autocast("cuda", precision, **how):
                    loss = learner(*self.views)["loss"]
                torch.autograd.grad(loss, self.parameters)
            del loss
        torch.cuda.current_stream().wait_stream(beside)
        # Other threads may talk to the GPU meanwhile: they bring images.
        alone = {"capture_error_mode": "thread_local"}
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.forward, **alone), torch.autocast("cuda", precision, **how):
                metrics = learner(*self.views)
            self.slope = torch.ones_like(metrics["loss"])
            with torch.cuda.graph(self.backward, pool=self.forward.pool(), **alone):
                self.gradients = torch.autograd.grad(metrics["loss"], self.parameters, self.slope)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotRecordable(str(error).partition("\n")[0]) from error
        self.metrics = {name: value.detach() for name, value in metrics.items()}

    def __call__(self, *views: Tensor) -> dict[str, Tensor]:
        for own, given in zip(self.views, views, strict=True):
            own.copy_(given)
        return self.metrics | {"loss": _Replayed.apply(self, *self.parameters)}


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recording: Recording, *parameters: Tensor) -> Tensor:
        recording.forward.replay()
        ctx.recording = recording
        return recording.metrics["loss"].detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        recording = ctx.recording
        recording.slope.copy_(gradient)
        recording.backward.replay()
        return None, *(each.detach() for each in recording.gradients)
