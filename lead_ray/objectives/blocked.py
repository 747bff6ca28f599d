"""LEAD's alignment block by block, loss and gradients in one pass: memory grows with the locations, not their square.

The loss is a scalar, so its gradient is known up to a factor as soon as a block's two distributions are: backward
has nothing to compute again, and nothing of size n x m is kept. On GPUs with Triton, `alignment_triton` does the work.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lead_ray.machine import quick_products
from lead_ray.models.hypercolumn import Blocks, Normalisation, similarity_factors
from lead_ray.models.rowwise import RowwiseSimilarity
from lead_ray.objectives import alignment_triton

BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""At most of one [rows, m] matrix. Two or three are alive at once: on a CPU about a core's second-level cache (2 MB); a
GPU wants few large kernels, and takes 200 images of 24 x 24 locations together."""
GROUP_BYTES = {"cpu": 2**24, "cuda": 2**28}
"""At most of the [n, m] matrices of the images that are made ready together, of one if it is larger: small images one
by one would cost more in calls than in arithmetic."""


def left_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compiler.disable(), which as a decorator imports the compiler: two seconds for those who never compile."""

    @wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        apart = torch.compiler.disable(function) if torch.compiler.is_compiling() else function
        return apart(*arguments, **options)

    return called


@left_alone  # nothing in it is for a compiler: kernels of its own, or few large calls
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
    those of the compared locations. In single precision at least; under autocast, products of single precision are
    multiplied as quick_products() says, by Triton in bf16, and summed in single precision all the same.
    Range: nats. The loss has a gradient with respect to the student maps, not to the blocks, and no second one.
    """
    device, precision = student_a.device.type, torch.promote_types(student_a.dtype, torch.float32)
    size_a, size_b = tuple(student_a.shape[2:]), tuple(student_b.shape[2:])
    n, m = student_a.shape[2:].numel(), student_b.shape[2:].numel()
    quick = torch.is_autocast_enabled(device)
    together = max(1, GROUP_BYTES.get(device, GROUP_BYTES["cuda"]) // (n * m * precision.itemsize))
    rows = (block_bytes or BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"])) // (m * precision.itemsize)

    def teacher(images: slice) -> RowwiseSimilarity:
        """Logits of a group of images."""
        parts = ([block[images].to(precision) for block in blocks] for blocks in (blocks_a, blocks_b))
        return RowwiseSimilarity(
            *parts,
            size_a=size_a,
            size_b=size_b,
            normalisation=normalisation,
            factor=1 / teacher_temperature,
            quick=quick,
        )

    wanted = torch.is_grad_enabled() and (student_a.requires_grad or student_b.requires_grad)
    a, b = (student.flatten(2).mT for student in (student_a, student_b))
    with torch.autocast(device, enabled=False):
        if alignment_triton.usable(student_a.device, precision, student_a.shape[1]):
            parts = ([block.to(precision) for block in blocks] for blocks in (blocks_a, blocks_b))
            factors = similarity_factors(*parts, size_a=size_a, size_b=size_b, normalisation=normalisation)
            units = (F.normalize(each.to(precision), dim=2) for each in (a, b))
            temperatures = {"temperature": temperature, "teacher_temperature": teacher_temperature}
            return alignment_triton.fused_alignment(*units, *factors, **temperatures, quick=quick)
        return _Alignment.apply(a, b, teacher, temperature, precision, together, rows, wanted, quick)


class _Alignment(torch.autograd.Function):
    """Means over images and locations of the cross-entropy and of the teacher's entropy."""

    @staticmethod
    def forward(
        ctx,
        student_a: Float[Tensor, "b n c"],
        student_b: Float[Tensor, "b m c"],
        teacher: Callable[[slice], RowwiseSimilarity],
        temperature: float,
        precision: torch.dtype,
        together: int,
        rows: int,
        wanted: bool,
        quick: bool,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        grads = [torch.empty_like(student) if wanted else None for student in (student_a, student_b)]
        losses, entropies = [], []
        for start in range(0, len(student_a), together):
            group = slice(start, start + together)
            similar = teacher(group)
            (a, length_a), (b, length_b) = (_unit(student[group].to(precision)) for student in (student_a, student_b))
            grad_b = torch.zeros_like(b) if wanted else None
            for own in _blocks(*a.shape[:2], rows):
                logits, other = similar.rows(*own), b[own[0]]
                with quick_products(student_a.device.type, quick):
                    loss, entropy, excess = _block(logits, a[own], other, temperature, wanted)
                    losses.append(loss)
                    entropies.append(entropy)
                    if wanted:
                        grad_a = torch.bmm(excess, other)
                        grads[0][group][own] = _through_unit(grad_a, a[own], length_a[own] * temperature)
                        grad_b[own[0]].baddbmm_(excess.mT, a[own])
                del logits, excess  # before the next block's are made
            if wanted:
                grads[1][group] = _through_unit(grad_b, b, length_b * temperature)
            del similar, a, b, grad_b  # before the next group's are made
        ctx.save_for_backward(*grads)
        ctx.count = student_a.shape[:2].numel()
        loss, entropy = (torch.stack(sums).sum() / ctx.count for sums in (losses, entropies))
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(saved * (gradient / ctx.count) for saved in ctx.saved_tensors), *[None] * 7


def _block(
    teacher: Tensor, a: Tensor, b: Tensor, temperature: float, wanted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sums of cross-entropy and entropy over some rows, and q - p; the teacher's logits are used up."""
    # Softmax by hand: of torch's, log_softmax and exp together take half as long again.
    teacher -= teacher.amax(dim=2, keepdim=True)
    p = teacher.exp()
    total = p.sum(dim=2, keepdim=True)
    p /= total
    entropy = total.log().sum() - torch.dot(p.flatten(), teacher.flatten())
    del teacher  # one matrix less in the cache
    nothing = a.new_empty(1)  # what beta = 0 leaves out
    logits = torch.baddbmm(nothing, a, b.mT, beta=0, alpha=1 / temperature)
    logits -= logits.amax(dim=2, keepdim=True)
    expected = torch.dot(p.flatten(), logits.flatten())
    total = logits.exp_().sum(dim=2, keepdim=True)
    loss = total.log().sum() - expected
    return loss, entropy, logits.div_(total).sub_(p) if wanted else None


def _blocks(images: int, n: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Images and their rows, so many at a time: several images whole, or even shares of one."""
    together, shares = max(1, rows // n), ceil(n / max(1, rows))
    height = ceil(n / shares)
    for start in range(0, images, together):
        for top in range(0, n, height):
            yield slice(start, start + together), slice(top, min(top + height, n))


def _unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """F.normalize, and the lengths."""
    lengths = torch.linalg.vector_norm(vectors, dim=2, keepdim=True).clamp_min(1e-12)
    return vectors / lengths, lengths


def _through_unit(gradient: Tensor, unit: Tensor, lengths: Tensor) -> Tensor:
    """The gradient for vectors of these lengths, in place of that for their unit vectors."""
    along = (gradient * unit).sum(dim=2, keepdim=True)
    return gradient.addcmul_(unit, along, value=-1).div_(lengths)
