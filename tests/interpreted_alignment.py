"""Run by test_alignment_triton in a process of its own, with TRITON_INTERPRET=1: prints what was found equal."""

import torch
from torch import Tensor
from torch.nn import functional

from lead_ray.models.hypercolumn import similarity_factors
from lead_ray.objectives.alignment_triton import fused_alignment
from lead_ray.objectives.blocked import blocked_alignment

TEMPERATURES = {"temperature": 0.2, "teacher_temperature": 0.3}
TILE = 16  # locations: several tiles, the last of them not full


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(a: Tensor, b: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """On matrices of all pairs."""
    a, b = (functional.normalize(each, dim=2) for each in (a, b))
    log_p = (first @ second.mT / TEMPERATURES["teacher_temperature"]).log_softmax(dim=2)
    log_q = (a @ b.mT / TEMPERATURES["temperature"]).log_softmax(dim=2)
    return -(log_p.exp() * log_q).sum(dim=2).mean(), -(log_p.exp() * log_p).sum(dim=2).mean()


def results(form, students: list[Tensor]) -> list[Tensor]:
    """Loss, entropy, gradients of three times the loss."""
    leaves = [student.detach().clone().requires_grad_() for student in students]
    loss, entropy = form(*leaves)
    (3 * loss).backward()
    return [loss.detach(), entropy, *(leaf.grad for leaf in leaves)]


def compare(channels: int) -> None:
    blocks = [[draw(2, 5, 4, 5, seed=side), draw(2, 24, 2, 3, seed=2 + side)] for side in (0, 1)]
    students = [draw(2, channels, 4, 5, seed=4), draw(2, channels, 5, 7, seed=5)]
    factors = similarity_factors(*blocks, size_a=(4, 5), size_b=(5, 7), normalisation="per-layer")
    assert factors[0].shape == (2, 20, 11)

    def fused(*maps: Tensor) -> tuple[Tensor, Tensor]:
        units = (functional.normalize(each, dim=1).flatten(2).mT for each in maps)
        return fused_alignment(*units, *factors, **TEMPERATURES, tile=TILE)

    def blocked(*maps: Tensor) -> tuple[Tensor, Tensor]:
        return blocked_alignment(*blocks, *maps, **TEMPERATURES, normalisation="per-layer")

    def exact(*maps: Tensor) -> tuple[Tensor, Tensor]:
        return whole(*(each.flatten(2).mT for each in maps), *(each.double() for each in factors))

    found = results(fused, students)
    for reference in (results(blocked, students), results(exact, [student.double() for student in students])):
        for mine, theirs in zip(found, reference, strict=True):
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-5, atol=1e-6)


def one_side() -> None:
    a, b, first, second = (functional.normalize(draw(1, 17, 5, seed=seed), dim=2) for seed in range(4))
    loss, entropy = fused_alignment(a, b.requires_grad_(), first, second, **TEMPERATURES, tile=TILE)
    loss.backward()
    assert b.grad.isfinite().all() and a.grad is None and not entropy.requires_grad


for channels in (8, 21):  # fewer than a chunk; no power of 2
    compare(channels)
    print(channels)
one_side()
print("one side")
