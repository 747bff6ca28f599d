"""LEAD's alignment block by block, loss and gradients in one pass: memory grows with the locations, not their square.

The loss is a scalar, so its gradient is known up to a factor as soon as a block's two distributions are: backward
has nothing to compute again, and nothing of size n x m is kept.
"""

from collections.abc import Iterator
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from lead_ray.models.hypercolumn import Blocks, Normalisation, similarity_factors

BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""At most of one [rows, m] matrix. Two or three are alive at once: on a CPU about a core's second-level cache (2 MB); a
GPU wants few large kernels, and takes 200 images of 24 x 24 locations together."""
GROUP_BYTES = {"cpu": 2**24, "cuda": 2**28}
"""At most of the [n, m] matrices of the images whose teachers are made ready together, of one if it is larger: small
images one by one would cost more in calls than in arithmetic."""


def blocked_alignment(
    blocks_a: Blocks,
    blocks_b: Blocks,
    student_a: Float[Tensor, "b c ha wa"],
    student_b: Float[Tensor, "b c hb wb"],
    *,
    temperature: float,
    teacher_temperature: float,
    normalisation: Normalisation,
    block_bytes: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """similarity_alignment() with the teacher that similarity() makes of the blocks, and its teacher_entropy().

    Shapes: teacher's blocks at native resolution, finest first; student maps, L2-normalised here, whose grids are
    those of the compared locations. Computed in single precision at least, under autocast, too.
    Range: nats. The loss has a gradient with respect to the student maps, not to the blocks, and no second one.
    """
    device, precision = student_a.device.type, torch.promote_types(student_a.dtype, torch.float32)
    size_a, size_b = tuple(student_a.shape[2:]), tuple(student_b.shape[2:])
    n, m = student_a.shape[2:].numel(), student_b.shape[2:].numel()
    together = max(1, GROUP_BYTES.get(device, GROUP_BYTES["cuda"]) // (n * m * precision.itemsize))
    rows = (block_bytes or BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"])) // (m * precision.itemsize)

    def groups(blocks: Blocks) -> Iterator[list[Tensor]]:
        for parts in zip(*(block.split(together) for block in blocks), strict=True):
            yield [part.to(precision) for part in parts]

    losses, entropies = [], []
    with torch.autocast(device, enabled=False):
        students = (student.split(together) for student in (student_a, student_b))
        for part_a, part_b, *maps in zip(groups(blocks_a), groups(blocks_b), *students, strict=True):
            first, second = similarity_factors(
                part_a, part_b, size_a=size_a, size_b=size_b, normalisation=normalisation
            )
            a, b = (part.to(precision).flatten(2).mT for part in maps)
            wanted = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
            loss, entropy = _Alignment.apply(a, b, first, second, temperature, teacher_temperature, rows, wanted)
            losses.append(loss)
            entropies.append(entropy)
    count = len(student_a) * n
    return torch.stack(losses).sum() / count, torch.stack(entropies).sum() / count


class _Alignment(torch.autograd.Function):
    """Sums over images and locations, from factors of the teacher's similarities."""

    @staticmethod
    def forward(
        ctx,
        student_a: Float[Tensor, "b n c"],
        student_b: Float[Tensor, "b m c"],
        first: Float[Tensor, "b n k"],
        second: Float[Tensor, "b m k"],
        temperature: float,
        teacher_temperature: float,
        rows: int,
        wanted: bool,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        (a, length_a), (b, length_b) = _unit(student_a), _unit(student_b)
        grad_a, grad_b = (torch.empty_like(a), torch.zeros_like(b)) if wanted else (None, None)
        losses, entropies = [], []
        for block in _blocks(*a.shape[:2], rows):
            images = block[0]
            log_p = _log_softmax(first[block], second[images], teacher_temperature)
            p = log_p.exp()
            entropies.append(torch.dot(p.flatten(), log_p.flatten()))
            del log_p  # one matrix less in the cache
            log_q = _log_softmax(a[block], b[images], temperature)
            losses.append(torch.dot(p.flatten(), log_q.flatten()))
            if wanted:
                excess = log_q.exp_().sub_(p)
                grad_a[block] = excess @ b[images]
                grad_b[images].baddbmm_(excess.mT, a[block])
        if wanted:
            grad_a = _through_unit(grad_a, a, length_a * temperature)
            grad_b = _through_unit(grad_b, b, length_b * temperature)
        ctx.save_for_backward(grad_a, grad_b)
        loss, entropy = (-torch.stack(sums).sum() for sums in (losses, entropies))
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(saved * gradient for saved in ctx.saved_tensors), None, None, None, None, None, None


def _blocks(images: int, n: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Images and their rows, so many at a time: several images whole, or even shares of one."""
    together, shares = max(1, rows // n), ceil(n / max(1, rows))
    height = ceil(n / shares)
    for start in range(0, images, together):
        for top in range(0, n, height):
            yield slice(start, start + together), slice(top, top + height)


def _log_softmax(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    nothing = a.new_empty(1)  # what beta = 0 leaves out
    return torch.baddbmm(nothing, a, b.mT, beta=0, alpha=1 / temperature).log_softmax(dim=2)


def _unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """F.normalize, and the lengths."""
    lengths = torch.linalg.vector_norm(vectors, dim=2, keepdim=True).clamp_min(1e-12)
    return vectors / lengths, lengths


def _through_unit(gradient: Tensor, unit: Tensor, lengths: Tensor) -> Tensor:
    """The gradient for vectors of these lengths, in place of that for their unit vectors."""
    along = (gradient * unit).sum(dim=2, keepdim=True)
    return gradient.addcmul_(unit, along, value=-1).div_(lengths)
