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

    From now on the learner may only be called in training, with views of that size. Its parameters, its state dict and
    who wraps it do not notice.
    Raises: ValueError when its passes cannot be recorded: they wait for the GPU, or look at its numbers.
    """
    batches = iter(batches)
    first = next(batches)
    kept = [buffer.clone() for buffer in learner.buffers()]
    try:
        forward = Recording(learner, first, precision)
    except RuntimeError as error:
        raise ValueError(
            f"the passes of {type(learner).__name__} cannot be recorded as CUDA graphs: use --no-cuda-graphs "
            f"({str(error).partition(chr(10))[0]})"
        ) from error
    with torch.no_grad():
        for buffer, value in zip(learner.buffers(), kept, strict=True):  # as if there had been no warming up
            buffer.copy_(value)
    learner.forward = forward
    return chain([first], batches)


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

    What it returns is overwritten by the next call.
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
        with torch.cuda.graph(self.forward, **alone), torch.autocast("cuda", precision, **how):
            metrics = learner(*self.views)
        self.slope = torch.ones_like(metrics["loss"])
        with torch.cuda.graph(self.backward, pool=self.forward.pool(), **alone):
            self.gradients = torch.autograd.grad(metrics["loss"], self.parameters, self.slope)
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
