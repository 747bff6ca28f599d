"""The alignment block by block equals the plain form, gradients included, and never holds a matrix of all pairs."""

from unittest import mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from lead_ray.models import rowwise
from lead_ray.models.hypercolumn import similarity
from lead_ray.objectives import blocked
from lead_ray.objectives.align import similarity_alignment, teacher_entropy
from lead_ray.objectives.blocked import blocked_alignment
from lead_ray.speed.measure import peak_bytes

NORMALISATIONS = ["per-layer", "global", "centred"]


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def teacher_of(blocks_a: list, blocks_b: list, size_a: tuple, size_b: tuple, normalisation: str) -> Tensor:
    """Cosines of hypercolumns, which are built."""

    def columns(blocks: list, size: tuple) -> list[Tensor]:
        maps = [functional.interpolate(block, size=size, mode="bilinear").flatten(2) for block in blocks]
        if normalisation == "centred":
            maps = [each - each.mean(dim=2, keepdim=True) for each in maps]
        return [torch.cat(maps, dim=1)] if normalisation == "global" else maps

    sides = columns(blocks_a, size_a), columns(blocks_b, size_b)
    cosines = [functional.normalize(a, dim=1).mT @ functional.normalize(b, dim=1) for a, b in zip(*sides, strict=True)]
    return sum(cosines) / len(cosines)


def plain(
    blocks_a, blocks_b, student_a, student_b, *, temperature, teacher_temperature, normalisation
) -> tuple[Tensor, Tensor]:
    sizes = student_a.shape[2:], student_b.shape[2:]
    teacher = teacher_of(blocks_a, blocks_b, *sizes, normalisation)
    loss = similarity_alignment(
        teacher,
        student_a.flatten(2),
        student_b.flatten(2),
        temperature=temperature,
        teacher_temperature=teacher_temperature,
    )
    return loss, teacher_entropy(teacher, teacher_temperature)


def results(form, blocks_a, blocks_b, student_a, student_b, **settings) -> list[Tensor]:
    """Loss, entropy, gradients of three times the loss."""
    leaves = [student.detach().clone().requires_grad_() for student in (student_a, student_b)]
    loss, entropy = form(blocks_a, blocks_b, *leaves, **settings)
    (3 * loss).backward()
    return [loss.detach(), entropy, *(leaf.grad for leaf in leaves)]


def inputs(images: int, natives: list, channels: int, sizes: tuple, width: int, seed: int, **kind) -> tuple:
    """Teacher's blocks and student maps of both sides."""
    blocks = [
        [draw(images, channels, *native, seed=seed + 10 * side + i, **kind) for i, native in enumerate(natives)]
        for side in (0, 1)
    ]
    return *blocks, *(draw(images, width, *size, seed=seed + side + 5, **kind) for side, size in enumerate(sizes))


class TestEqualsThePlainForm:
    sides = st.integers(1, 5)

    @example(  # blocks of 7 rows do not divide 25
        images=3,
        natives=[(2, 2)],
        channels=9,
        sizes=((5, 5), (5, 5)),
        width=4,
        common={"temperature": 0.05, "teacher_temperature": 0.05, "normalisation": "per-layer"},
        block_bytes=7 * 25 * 8,
        few_columns=64,
        seed=0,
    )
    @given(
        images=st.integers(1, 5),
        natives=st.lists(st.tuples(sides, sides), min_size=1, max_size=3),
        channels=st.sampled_from([2, 7, 30]),  # fewer or more than locations
        sizes=st.tuples(st.tuples(sides, sides), st.tuples(sides, sides)),
        width=st.integers(2, 9),
        common=st.fixed_dictionaries(
            {
                "temperature": st.floats(0.03, 2),
                "teacher_temperature": st.floats(0.03, 2),
                "normalisation": st.sampled_from(["per-layer", "global"]),  # about its mean a tiny map is often nothing
            }
        ),
        block_bytes=st.integers(1, 9000),  # from less than a row to several images
        few_columns=st.sampled_from([64, 0, -1000]),  # products are resized: of no block, of coarse ones, of all
        seed=st.integers(0, 2**31),
    )
    def test_of_any_sizes(self, images, natives, channels, sizes, width, common, block_bytes, few_columns, seed):
        given_ = inputs(images, natives, channels, sizes, width, seed)
        with mock.patch.object(rowwise, "FEW_COLUMNS", few_columns):
            found = results(blocked_alignment, *given_, **common, block_bytes=block_bytes)
        for mine, theirs in zip(found, results(plain, *given_, **common), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("normalisation", NORMALISATIONS)
    @pytest.mark.parametrize("channels", [3, 150])
    @pytest.mark.parametrize("together", [1, 2, 5])
    def test_whatever_the_groups_of_images(self, monkeypatch, normalisation, channels, together):
        faces = [(12, 12), (6, 6), (3, 3)]
        given_ = inputs(5, faces, channels, ((12, 12), (12, 12)), 8, 0)
        common = {"temperature": 0.05, "teacher_temperature": 0.1, "normalisation": normalisation}
        monkeypatch.setitem(blocked.GROUP_BYTES, "cpu", together * 144 * 144 * 8)
        found = results(blocked_alignment, *given_, **common)
        for mine, theirs in zip(found, results(plain, *given_, **common), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
        single = [[block.float() for block in part] if isinstance(part, list) else part.float() for part in given_]
        for mine, theirs in zip(results(blocked_alignment, *single, **common), found, strict=True):
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("tau", [0.05, 0.2])
    def test_golden(self, golden, tau):
        numbers, prefix = golden("lead_stage2"), f"out_tau{100 * tau:03.0f}_"
        layers = numbers["par_layer_dims"].int().tolist()
        teachers = [numbers[f"in_teacher_{side}"].split(layers, dim=1) for side in "ij"]
        students = [numbers[f"in_student_{side}"] for side in "ij"]
        common = {"temperature": tau, "teacher_temperature": tau, "block_bytes": 3 * 20 * 8}
        loss, _, grad_i, _ = results(blocked_alignment, *teachers, *students, normalisation="per-layer", **common)
        torch.testing.assert_close(loss, numbers[f"{prefix}layerwise_mean"], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(grad_i / 3, numbers[f"{prefix}layerwise_grad_student_i"], rtol=1e-8, atol=1e-9)
        whole = [[torch.cat(blocks, dim=1)] for blocks in teachers]
        found = results(blocked_alignment, *whole, *students, normalisation="global", **common)
        names = ("mean", "teacher_entropy_mean", "grad_student_i", "grad_student_j")
        for value, name, scale in zip(found, names, (1, 1, 3, 3), strict=True):
            torch.testing.assert_close(value / scale, numbers[prefix + name], rtol=1e-8, atol=1e-9)


COMMON = {"temperature": 0.2, "teacher_temperature": 0.3, "normalisation": "per-layer"}


class TestGradient:
    def test_is_that_of_finite_differences(self):
        blocks_a, blocks_b, student_a, student_b = inputs(2, [(3, 3), (2, 2)], 6, ((3, 3), (2, 4)), 3, 0)

        def loss(a: Tensor, b: Tensor) -> Tensor:
            return blocked_alignment(blocks_a, blocks_b, a, b, **COMMON, block_bytes=300)[0]

        assert torch.autograd.gradcheck(loss, (student_a.requires_grad_(), student_b.requires_grad_()))
        assert torch.autograd.gradcheck(lambda a: loss(a, student_b.detach()), (student_a,)), "one side alone"

    def test_none_reaches_the_teacher_and_none_is_made_unasked(self):
        *blocks, student_a, student_b = inputs(2, [(3, 3), (2, 2)], 6, ((3, 3), (3, 3)), 3, 0)
        for block in (*blocks[0], *blocks[1]):
            block.requires_grad_()
        loss, entropy = blocked_alignment(*blocks, student_a.requires_grad_(), student_b, **COMMON)
        loss.backward()
        assert student_a.grad is not None and not entropy.requires_grad
        assert all(block.grad is None for block in (*blocks[0], *blocks[1]))
        with torch.no_grad():
            alone = blocked_alignment(*blocks, student_a, student_b, **COMMON)[0]
        assert not alone.requires_grad and torch.equal(alone, loss.detach())

    def test_a_location_without_features_gets_a_finite_one(self):
        *blocks, student_a, student_b = inputs(1, [(2, 2)], 3, ((2, 2), (2, 2)), 3, 0)
        student_a[..., 0, 0] = 0
        _, _, *gradients = results(blocked_alignment, *blocks, student_a, student_b, **COMMON)
        assert all(gradient.isfinite().all() for gradient in gradients)

    def test_half_precision_maps_are_aligned_in_single(self):
        given_ = inputs(2, [(4, 4), (2, 2)], 6, ((4, 4), (4, 4)), 5, 0, dtype=torch.bfloat16)
        single = [[block.float() for block in part] if isinstance(part, list) else part.float() for part in given_]
        exact, half = (results(blocked_alignment, *maps, **COMMON) for maps in (single, given_))
        assert half[0].dtype == torch.float32 and half[2].dtype == torch.bfloat16
        for mine, theirs in zip(half, exact, strict=True):
            torch.testing.assert_close(mine, theirs.to(mine.dtype))

    def test_autocast_takes_quick_products_and_gives_back_the_setting(self):
        given_ = inputs(2, [(12, 12), (6, 6)], 20, ((12, 12), (12, 12)), 64, 0, dtype=torch.float32)
        common = COMMON | {"temperature": 0.05, "teacher_temperature": 0.05}
        exact = results(blocked_alignment, *given_, **common)
        before = torch.backends.mkldnn.matmul.fp32_precision
        with torch.autocast("cpu", torch.bfloat16):
            quick = results(blocked_alignment, *given_, **common)
        assert torch.backends.mkldnn.matmul.fp32_precision == before
        for mine, theirs in zip(quick, exact, strict=True):
            assert mine.dtype == torch.float32
            assert (mine - theirs).norm() < 0.01 * theirs.norm()


class TestMemory:
    """On quarter-width ResNet-18's blocks; 64 x 64 locations are those of 256 px."""

    def peak(self, form, size: int) -> int:
        blocks = [
            [draw(1, 16 * 2**i, size >> i, size >> i, seed=side, dtype=torch.float32) for i in range(4)]
            for side in (0, 1)
        ]
        leaves = [draw(1, 64, size, size, seed=side, dtype=torch.float32).requires_grad_() for side in (0, 1)]
        return peak_bytes(lambda: form(*blocks, *leaves)[0].backward(), torch.device("cpu"))

    @staticmethod
    def with_similarity(blocks_a, blocks_b, student_a, student_b) -> tuple[Tensor, Tensor]:
        teacher = similarity(blocks_a, blocks_b, size=student_a.shape[2])
        students = student_a.flatten(2), student_b.flatten(2)
        loss = similarity_alignment(teacher, *students, temperature=0.2, teacher_temperature=0.3)
        return loss, teacher_entropy(teacher, 0.3)

    @staticmethod
    def block_by_block(*maps) -> tuple[Tensor, Tensor]:
        return blocked_alignment(*maps, **COMMON)

    def test_is_a_tenth_of_the_plain_forms_and_grows_with_the_locations(self):
        small, large = (self.peak(self.block_by_block, size) for size in (32, 64))
        assert large < self.peak(self.with_similarity, 64) / 10
        assert large < 4.5 * small  # four times the locations
