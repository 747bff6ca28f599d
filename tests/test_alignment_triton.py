"""The Triton kernels, under Triton's interpreter on a CPU: equal to the block-by-block form and to whole matrices."""

import pytest
import torch
from torch import Tensor

from lead_ray import machine
from lead_ray.objectives import alignment_triton
from lead_ray.objectives.blocked import blocked_alignment


@pytest.mark.slow
def test_equal_to_both_other_forms(interpreted):
    assert interpreted("alignment") == ["8", "21", "one", "side"]


def test_gpus_get_them_unless_forbidden(monkeypatch):
    gpu, single = torch.device("cuda"), torch.float32
    monkeypatch.setattr(machine, "find_spec", lambda name: name == "triton")
    monkeypatch.setenv("LEAD_RAY_TRITON", "1")
    assert alignment_triton.usable(gpu, single, 64) and not alignment_triton.usable(gpu, single, 512)
    assert not alignment_triton.usable(gpu, torch.float64, 64)
    assert not alignment_triton.usable(torch.device("cpu"), single, 64)
    monkeypatch.setenv("LEAD_RAY_TRITON", "0")
    assert not alignment_triton.usable(gpu, single, 64)
    monkeypatch.delenv("LEAD_RAY_TRITON")
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert not alignment_triton.usable(gpu, single, 64)


def test_blocked_alignment_hands_them_unit_vectors_and_factors(monkeypatch):
    """With whole matrices in the kernels' place, it is what it is without."""
    generator = torch.Generator().manual_seed(0)
    blocks = [[torch.randn(2, 6, 4, 4, generator=generator), torch.randn(2, 9, 2, 2, generator=generator)]] * 2
    students = [torch.randn(2, 5, *size, generator=generator) for size in ((4, 4), (3, 5))]
    settings = {"temperature": 0.2, "teacher_temperature": 0.3, "normalisation": "global"}
    expected = blocked_alignment(*blocks, *students, **settings)

    def whole(a: Tensor, b: Tensor, first: Tensor, second: Tensor, *, temperature, teacher_temperature, quick):
        assert not quick
        log_p = (first @ second.mT / teacher_temperature).log_softmax(dim=2)
        log_q = (a @ b.mT / temperature).log_softmax(dim=2)
        return -(log_p.exp() * log_q).sum(dim=2).mean(), -(log_p.exp() * log_p).sum(dim=2).mean()

    monkeypatch.setattr(alignment_triton, "usable", lambda device, precision, channels: True)
    monkeypatch.setattr(alignment_triton, "fused_alignment", whole)
    for mine, theirs in zip(blocked_alignment(*blocks, *students, **settings), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
