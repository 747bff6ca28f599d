"""Run by test_pool_triton in a process of its own, with TRITON_INTERPRET=1: prints what was found equal."""

import torch
from torch.nn import functional as F

from lead_ray.models import pool_triton

pool_triton.TILE = {"ROWS": 8, "CHANNELS": 16}
for shape in ((2, 5, 7, 6), (1, 21, 4, 9), (3, 8, 1, 1)):
    # Whole numbers: many are equal, and sums are exact.
    features = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(0)).float()
    features = features.contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = F.max_pool2d(features, 3, stride=2, padding=1)
    found = pool_triton.pooled(features)
    assert torch.equal(found, expected)
    sent = torch.randint(-9, 9, expected.shape, generator=torch.Generator().manual_seed(1)).float()
    mine, theirs = (torch.autograd.grad(each, features, sent)[0] for each in (found, expected))
    assert torch.equal(mine, theirs), shape
with torch.no_grad():
    features[0, 0, 0, 0] = torch.nan
    assert torch.equal(pool_triton.pooled(features).isnan(), F.max_pool2d(features, 3, 2, 1).isnan())
print("equal")
