"""The regressor on a CPU: one product a block for the responses, one compiled pass for all that follows them.

Several times faster than the products and passes of `regressor` and `descent`, to which tests hold it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lead_ray import threads
from lead_ray.readouts import soft_argmax_cpu, upsampling_cpu

F = np.float32
AT_ONCE = 8  # images for every thread: fewer read the weights too often, more leave the cache
SHARED = 32  # images at most: threads share a cache
CACHE_LINE = 16  # floats; where rows of maps begin with one, products write them up to half as fast again


class Passes:
    """Passes over images of these blocks, a few at a time, in memory that is kept from one to the next.

    New memory costs a fault for every page of it, here as long as half of the products. Not for two threads at a time.
    """

    def __init__(self, blocks: Sequence[Float[Tensor, "n _ _ _"]], *, marks: int, points: int, grid: int):
        self._blocks = [block.permute(0, 2, 3, 1) for block in blocks]
        self._marks, self._grid, count = marks, grid, marks * points
        self._most = max(1, min(len(blocks[0]), AT_ONCE * torch.get_num_threads(), SHARED))
        self._shapes = np.array([block.shape[1:3] for block in self._blocks])
        self._row = -(-count // CACHE_LINE) * CACHE_LINE
        self._values = self._shapes.prod(1) * self._row
        self._plan = upsampling_cpu.plan(tuple(map(tuple, self._shapes.tolist())), grid)
        self._axis = np.linspace(-1, 1, grid, dtype=F)
        self._read = [torch.empty(self._most * h * w, c) for _, h, w, c in (block.shape for block in self._blocks)]
        self._maps = torch.empty(self._most * int(self._values.sum()))
        self._virtual, self._residual = torch.empty(self._most, marks, 2 * points), torch.empty(self._most, marks, 2)

    def virtual_points(self, weights: Sequence[Float[Tensor, "m _"]]) -> Float[Tensor, "k n points_2"]:
        """Virtual points of every landmark in all images, x0, y0, x1, y1, ..."""
        idle = torch.zeros(self._marks, self._virtual.shape[2], 2)
        found = []
        for some in torch.arange(len(self._blocks[0])).split(self._most):
            self._respond(some, weights)
            self._read_out(len(some), idle, idle[:, 0])
            found.append(self._virtual[: len(some)].clone())
        return torch.cat(found).transpose(0, 1)

    def gradients(
        self,
        weights: Sequence[Float[Tensor, "m _"]],
        linear: Float[Tensor, "k points_2 2"],
        bias: Float[Tensor, "k 2"],
        images: Int64[Tensor, " b"],
        landmarks: Float[Tensor, "b k 2"],
        visible: Bool[Tensor, "b k"],
        *,
        scale: float = 10.0,
    ) -> tuple[Float[Tensor, ""], list[Tensor]]:
        """regressor.loss() and its gradients: of every block's weights, of linear and of bias."""
        share = visible / (2 * visible.sum()).clamp(min=1)
        total, found = 0.0, [*map(torch.empty_like, weights), torch.zeros_like(linear), torch.zeros_like(bias)]
        parts = zip(*(each.split(self._most) for each in (images, landmarks, share)), strict=True)
        for number, (some, *truth) in enumerate(parts):
            maps = self._respond(some, weights)
            total += self._read_out(len(some), linear, bias, (*truth, scale))
            for slope, part, read in zip(found, maps, self._read, strict=False):
                # Nothing counts of what is there before the first, not even what is no number.
                slope.addmm_(part.mT, read[: len(part)], beta=min(number, 1))
            virtual, residual = self._virtual[: len(some)], self._residual[: len(some)]
            found[-2] += torch.einsum("bki,bkc->kic", virtual, residual)
            found[-1] += residual.sum(0)
        return torch.tensor(total, dtype=torch.float32), found

    def _respond(self, images: Tensor, weights: Sequence[Tensor]) -> list[Float[Tensor, "_ m"]]:
        """Convolve some images: the maps of all blocks, one after another in memory, a row for every cell."""
        maps = []
        for block, read, weight, part in zip(
            self._blocks, self._read, weights, self._by_block(len(images)), strict=True
        ):
            rows = read.view(self._most, *block.shape[1:])
            for row, image in zip(rows, images.tolist(), strict=False):
                row.copy_(block[image])
            maps.append(part.view(-1, self._row)[:, : len(weight)])
            torch.mm(read[: len(maps[-1])], weight.mT, out=maps[-1])
        return maps

    def _by_block(self, count: int) -> tuple[Tensor, ...]:
        sizes = (count * self._values).tolist()
        return self._maps[: sum(sizes)].split(sizes)

    def _read_out(
        self, count: int, linear: Tensor, bias: Tensor, truth: tuple[Tensor, Tensor, float] | None = None
    ) -> float:
        """The loss. With the truth (target, share, scale) the maps become its gradient; shared out over threads."""
        losses = np.zeros(count)
        levels = np.c_[count * (self._values.cumsum() - self._values), self._values, self._shapes]
        target, share, scale = truth or (self._residual, self._residual[..., 0], 0.0)
        given = [tensor.contiguous().numpy() for tensor in (linear, bias, target, share)]
        settings = (levels, self._plan, self._axis, *given, F(scale), truth is not None)
        self._residual.zero_()
        results = self._virtual.numpy(), self._residual.numpy(), losses

        def part(first: int, last: int) -> None:
            soft_argmax_cpu.read_out(self._maps.numpy(), *settings, *results, (first, last))

        threads.shared(part, count)
        return float(losses.sum())
