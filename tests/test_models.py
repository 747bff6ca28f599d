"""Networks against torchvision and what they replace; weights that come back, files that are refused."""

import json
import struct

import pytest
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from lead_ray.models import weights
from lead_ray.models.baselines import ColourPatches, untrained
from lead_ray.models.batchnorm import SyncBatchNorm, synchronise
from lead_ray.models.fpn import DenseEncoder, Fpn, FpnSettings, GroupNorm
from lead_ray.models.heads import DenseProjector
from lead_ray.models.hypercolumn import hypercolumn, similarity, similarity_factors, upsampling
from lead_ray.models.trunk import Trunk, TrunkSettings, pooled

TINY = TrunkSettings(depth=18, width=0.125)
SMALL_FPN = FpnSettings(dim=8, lateral=16, branch=32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=generator())


def lived_in(module: nn.Module) -> nn.Module:
    """With BatchNorm statistics and scales that are not those of a fresh network."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for values, low, high in (
                (norm.running_mean, -1, 1),
                (norm.running_var, 0.5, 2),
                (norm.weight, 0.5, 1.5),
            ):
                values.data.uniform_(low, high, generator=generator())
    return module.eval()


@pytest.fixture
def trunk():
    torch.manual_seed(0)
    return lived_in(Trunk(TINY))


@pytest.fixture
def dense(trunk):
    return lived_in(DenseEncoder(trunk, Fpn(trunk.channels, SMALL_FPN)))


class TestTrunk:
    @pytest.mark.parametrize("depth", [18, 34, 50])
    @torch.no_grad()
    def test_blocks_are_those_of_torchvision(self, depth):
        theirs = lived_in(getattr(torchvision.models, f"resnet{depth}")())
        ours = Trunk(TrunkSettings(depth=depth)).eval()
        ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if name[:3] != "fc."})
        expected = []
        for level in range(1, 5):
            getattr(theirs, f"layer{level}").register_forward_hook(lambda _m, _i, out: expected.append(out.clone()))
        theirs(images(2, 64, 96))
        blocks = ours(images(2, 64, 96))
        assert [block.shape[2:] for block in blocks] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        assert tuple(block.shape[1] for block in blocks) == ours.channels
        assert all(torch.equal(a, b) for a, b in zip(blocks, expected, strict=True))
        torch.testing.assert_close(pooled(blocks), expected[-1].mean(dim=(2, 3)))

    def test_width_multiplies_every_channel_count(self):
        assert Trunk(TrunkSettings(depth=50, width=0.5)).channels == (128, 256, 512, 1024)
        quarter = Trunk(TrunkSettings(depth=18, width=0.25))
        assert quarter.channels == (16, 32, 64, 128)
        assert sum(p.numel() for p in quarter.parameters()) == pytest.approx(0.7e6, rel=0.03)

    def test_fresh_weights_have_the_scale_of_torchvision(self):
        ours, theirs = Trunk(TrunkSettings(depth=18)), torchvision.models.resnet18()
        for name, value in ours.state_dict().items():
            if value.dim() == 4:
                assert value.std().item() == pytest.approx(theirs.state_dict()[name].std().item(), rel=0.05)

    def test_settings_out_of_range(self, unchecked):
        with pytest.raises(ValueError, match=r"trunk.depth must be one of \[18, 34, 50\], got 101"):
            TrunkSettings(depth=101)
        for width in (0.0, 0.3):
            with pytest.raises(ValueError, match=rf"64 \* width a multiple of 8, got {width}"):
                TrunkSettings(width=width)


def blocks_of(sizes: list[tuple[int, int]], seed: int, channels: int = 3) -> list[torch.Tensor]:
    source = generator(seed)
    return [torch.randn(2, channels, *size, generator=source, dtype=torch.float64) for size in sizes]


def reference_similarity(a: list, b: list, size: int, normalisation: str) -> torch.Tensor:
    """Through the hypercolumns themselves."""
    groups = [(a, b)] if normalisation == "global" else [([x], [y]) for x, y in zip(a, b, strict=True)]
    cosines = []
    for group in groups:
        sides = [hypercolumn(side, size).flatten(2) for side in group]
        if normalisation == "centred":
            sides = [side - side.mean(dim=2, keepdim=True) for side in sides]
        left, right = (functional.normalize(side, dim=1) for side in sides)
        cosines.append(left.mT @ right)
    return sum(cosines) / len(cosines)


FACE_BLOCKS = [(24, 24), (12, 12), (6, 6), (3, 3)]


class TestHypercolumn:
    def test_golden(self, golden):
        numbers = golden("hypercolumn")
        blocks = [numbers[f"in_layer{level}"] for level in range(1, 5)]
        for size in (24, 48):
            torch.testing.assert_close(hypercolumn(blocks, size), numbers[f"out_hypercolumn_{size}"])
        torch.testing.assert_close(hypercolumn(blocks[1:], 24), numbers["out_hypercolumn_24_layers_4_3_2"])

    @pytest.mark.parametrize("normalisation", ["per-layer", "global", "centred"])
    @pytest.mark.parametrize(("size", "channels"), [(24, 3), (24, 150), (32, 3), (32, 300)])
    def test_similarity_is_that_of_hypercolumns(self, normalisation, size, channels):
        """Of few channels and of more than there are locations: two ways to the same numbers."""
        a, b = blocks_of(FACE_BLOCKS, 0, channels), blocks_of(FACE_BLOCKS, 1, channels)
        expected = reference_similarity(a, b, size, normalisation)
        torch.testing.assert_close(
            similarity(a, b, size=size, normalisation=normalisation), expected, rtol=0, atol=1e-10
        )
        single = similarity([x.float() for x in a], [x.float() for x in b], size=size, normalisation=normalisation)
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)

    @example(sizes=[(1, 4)], size=2, channels=5, normalisation="global", seed=0)  # as many places, elsewhere
    @given(
        sizes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3),
        size=st.integers(1, 9),
        channels=st.sampled_from([2, 5, 82]),  # fewer or more than locations
        normalisation=st.sampled_from(["per-layer", "global"]),
        seed=st.integers(0, 2**31),
    )
    def test_similarity_of_any_sizes(self, sizes, size, channels, normalisation, seed):
        a, b = blocks_of(sizes, seed, channels), blocks_of(sizes, seed + 1, channels)
        found = similarity(a, b, size=size, normalisation=normalisation)
        torch.testing.assert_close(found, reference_similarity(a, b, size, normalisation), rtol=0, atol=1e-10)
        assert found.abs().max() <= 1 + 1e-10
        themselves = similarity(a, a, size=size, normalisation=normalisation).diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(themselves, torch.ones_like(themselves), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("normalisation", ["per-layer", "global"])
    def test_factors_of_two_grids(self, normalisation):
        """The second one is three times as fine: of nine cells the middle one is the other's."""
        a, b = blocks_of(FACE_BLOCKS, 0, 20), blocks_of(FACE_BLOCKS[::-1], 1, 20)
        sizes = {"size_a": (24, 24), "size_b": (72, 72)}
        first, second = similarity_factors(a, b, **sizes, normalisation=normalisation)
        middles = second.unflatten(1, (72, 72))[:, 1::3, 1::3].flatten(1, 2)
        torch.testing.assert_close(first @ middles.mT, reference_similarity(a, b, 24, normalisation))

    def test_factors_have_few_columns(self):
        """Of ResNet-50's 3840 channels on 96 px: 256 channels, then 144, 36 and 9 locations."""
        blocks = [torch.ones(1, 256 * 2**level, *size) for level, size in enumerate(FACE_BLOCKS)]
        sizes = {"size_a": (24, 24), "size_b": (24, 24)}
        first, second = similarity_factors(blocks, blocks, **sizes, normalisation="per-layer")
        assert first.shape == second.shape == (1, 576, 445)
        torch.testing.assert_close(first @ second.mT, torch.ones(1, 576, 576))

    def test_a_map_of_zeros_is_similar_to_nothing(self):
        a = blocks_of(FACE_BLOCKS, 0)
        zeros = [torch.zeros_like(block) for block in a]
        for normalisation in ("per-layer", "global"):
            assert not similarity(zeros, a, size=24, normalisation=normalisation).any()

    def test_upsampling_keeps_constants(self):
        rows = upsampling(torch.Size((3, 5)), 7).sum(dim=1)
        torch.testing.assert_close(rows, torch.ones_like(rows))

    def test_unknown_normalisation(self, unchecked):
        blocks = blocks_of([(2, 2)], 0)
        with pytest.raises(ValueError, match=r"must be one of .*'centred'.*, got 'layer'"):
            similarity(blocks, blocks, size=2, normalisation="layer")


class TestFpn:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ((96, 96), (24, 24)),
            ((136, 136), (34, 34)),
            ((100, 92), (25, 23)),
            ((97, 130), (25, 33)),
            ((32, 32), (8, 8)),
        ],
    )
    @torch.no_grad()
    def test_map_is_at_a_quarter_of_any_image(self, dense, size, expected):
        (compact,) = dense(images(2, *size))
        assert compact.shape == (2, 8, *expected)
        assert compact.isfinite().all()

    @pytest.mark.parametrize("dim", [1, 64, 256])
    def test_dim_is_the_number_of_channels(self, trunk, dim):
        fpn = Fpn(trunk.channels, FpnSettings(dim=dim, lateral=16, branch=32))
        encoder = DenseEncoder(trunk, fpn)
        assert encoder.channels == (dim,)
        assert encoder(images(1, 64, 64))[0].shape == (1, dim, 16, 16)

    @pytest.mark.parametrize("size", [(96, 96), (100, 92), (97, 130)])
    @torch.no_grad()
    def test_is_the_sum_of_its_levels_each_resized_by_itself(self, dense, size):
        blocks, fpn = dense.trunk(images(2, *size)), dense.fpn
        level, total = 0, 0
        for depth in (3, 2, 1, 0):
            lateral = fpn.laterals[depth](blocks[depth])
            level = lateral + functional.interpolate(level, size=lateral.shape[2:]) if depth < 3 else lateral
            branch = level
            for stage, block in enumerate(fpn.branches[depth], start=1):
                branch = block(branch)
                last = stage == len(fpn.branches[depth])
                grid = blocks[0].shape[2:] if last else [2 * side for side in branch.shape[2:]]
                branch = functional.interpolate(branch, size=grid, mode="bilinear")
            total = total + branch
        torch.testing.assert_close(fpn(blocks), fpn.output(total))

    def test_norm_of_half_precision_is_single_precisions(self):
        norm, features = GroupNorm(2, 4), images(2, 6, 6).repeat(1, 4, 1, 1)[:, :4].bfloat16()
        assert torch.equal(norm(features), norm(features.float()).bfloat16())

    def test_every_block_reaches_the_output(self, dense):
        blocks = [block.detach().requires_grad_() for block in dense.trunk(images(1, 96, 96))]
        dense.fpn(blocks)[0, :, 12, 12].sum().backward()
        assert all(block.grad.any() for block in blocks)

    def test_upsampling_steps_follow_the_stride(self, trunk):
        """Panoptic FPN's semantic branch: log2(stride / 4) doublings, at least one convolution."""
        fpn = Fpn(trunk.channels, SMALL_FPN)
        assert [len(branch) for branch in fpn.branches] == [1, 1, 2, 3]

    def test_settings_out_of_range(self):
        with pytest.raises(ValueError, match=r"fpn.dim must be >= 1, got 0"):
            FpnSettings(dim=0)
        with pytest.raises(ValueError, match=r"fpn.branch must be a multiple of GroupNorm's 32 groups, got 48"):
            FpnSettings(branch=48)

    def test_head_is_pointwise(self):
        head = DenseProjector(8, 5).eval()
        features = torch.randn(2, 8, 4, 4, generator=generator())
        whole = head(features)
        assert whole.shape == (2, 5, 4, 4)
        torch.testing.assert_close(head(features[:, :, 1:2, 2:3]), whole[:, :, 1:2, 2:3])


class TestWeights:
    @pytest.mark.parametrize("kind", ["trunk", "dense"])
    @torch.no_grad()
    def test_round_trip(self, kind, request, tmp_path):
        encoder = request.getfixturevalue(kind)
        path, trained = tmp_path / "encoder.safetensors", {"images": 7, "settings": {"seed": 1}}
        weights.save(path, encoder.to(memory_format=torch.channels_last), trained)
        loaded = weights.load(path)
        assert type(loaded) is type(encoder) and not loaded.training
        for mine, theirs in zip(loaded(images(2, 64, 64)), encoder(images(2, 64, 64)), strict=True):
            assert torch.equal(mine, theirs)
        card = weights.read_card(path)
        assert (card.kind, card.trunk, card.trained) == (kind, TINY, trained)
        assert card.fpn == (SMALL_FPN if kind == "dense" else None)

    def test_header_says_in_plain_text_how_to_load(self, trunk, tmp_path):
        path = tmp_path / "encoder.safetensors"
        weights.save(path, trunk, {"data": "faces"})
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        card = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["lead_ray"])
        assert card["trained"] == {"data": "faces"}
        assert "lead_ray.models.weights.load" in card["load"]

    @torch.no_grad()
    def test_half_precision_halves_the_file_and_loads_as_single(self, trunk, tmp_path):
        single, half = tmp_path / "single.safetensors", tmp_path / "half.safetensors"
        weights.save(single, trunk, {})
        weights.save(half, trunk, {}, dtype=torch.float16)
        assert half.stat().st_size < 0.6 * single.stat().st_size
        for mine, theirs in zip(weights.load(half)(images(1, 64, 64)), trunk(images(1, 64, 64)), strict=True):
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)

    def test_synchronised_weights_load_as_any(self, trunk, tmp_path):
        state = {name: value.clone() for name, value in trunk.state_dict().items()}
        weights.save(tmp_path / "encoder.safetensors", synchronise(trunk), {})
        loaded = weights.load(tmp_path / "encoder.safetensors").state_dict()
        assert state.keys() == loaded.keys() and all(torch.equal(state[name], loaded[name]) for name in state)

    @pytest.fixture
    def foreign(self, trunk, tmp_path):
        """Files that are no encoder of ours, by what is wrong with them."""
        path = tmp_path / "encoder.safetensors"

        def pickled():
            torch.save(trunk.state_dict(), path)

        def strange_card():
            save_file({"a": torch.ones(1)}, path, metadata={"lead_ray": json.dumps({"kind": "new", "shape": 1})})

        def cut_short():
            weights.save(path, trunk, {})
            path.write_bytes(path.read_bytes()[:-100])

        def other_network():
            weights.save(path, trunk, {})
            tensors = load_file(path)
            card = weights.describe(Trunk(TrunkSettings(depth=34, width=0.125)), {})
            save_file(tensors, path, metadata={"lead_ray": json.dumps(weights.asdict(card))})

        makers = {
            "a pickle": pickled,
            "an empty file": lambda: path.write_bytes(b""),
            "another's safetensors": lambda: save_file({"a": torch.ones(1)}, path),
            "another's safetensors with a header": lambda: save_file({"a": torch.ones(1)}, path, metadata={"b": "c"}),
            "a strange card": strange_card,
            "cut short": cut_short,
            "another network": other_network,
        }

        def make(what: str):
            makers[what]()
            return path

        return make

    @pytest.mark.parametrize(
        "what",
        [
            "a pickle",
            "an empty file",
            "another's safetensors",
            "another's safetensors with a header",
            "a strange card",
            "cut short",
            "another network",
        ],
    )
    def test_foreign_files_are_refused(self, foreign, what):
        with pytest.raises(ValueError, match=r"encoder.safetensors is not a lead_ray encoder"):
            weights.load(foreign(what))

    def test_missing_file(self, tmp_path):
        for path in (tmp_path / "none.safetensors", tmp_path):
            with pytest.raises(FileNotFoundError, match=r"no weights at .* give a finished run's folder"):
                weights.load(path)


class TestSyncBatchNorm:
    def test_synchronise_keeps_names_modes_and_what_is_frozen(self, dense):
        names = list(dense.state_dict())
        dense.trunk.requires_grad_(False)
        dense.trunk.layer1.train()
        done = synchronise(dense)
        assert done is dense and list(done.state_dict()) == names
        norms = {name: m for name, m in done.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        assert norms and all(isinstance(norm, SyncBatchNorm) for norm in norms.values())
        assert not any(p.requires_grad for norm in norms.values() for p in norm.parameters())
        assert {name for name, norm in norms.items() if norm.training} == {n for n in norms if "layer1" in n}

    def test_input_without_channels(self, unchecked):
        with pytest.raises(ValueError, match=r"SyncBatchNorm needs \[n, c, ...\], got \(3,\)"):
            SyncBatchNorm(3)(torch.zeros(3))


class TestBaselines:
    def test_untrained_is_the_same_network_every_time(self, dense):
        card = weights.describe(dense, {})
        state = torch.random.get_rng_state()
        first, again, other = untrained(card), untrained(card), untrained(card, seed=1)
        assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers stay as they were"
        assert isinstance(first, DenseEncoder) and not first.training
        for name, value in first.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])
        assert not torch.equal(first.trunk.conv1.weight, other.trunk.conv1.weight)

    @settings(max_examples=20)
    @given(st.sampled_from([4, 8, 12, 20]), st.integers(0, 7), st.integers(0, 9))
    def test_colour_patches_surround_their_cell(self, side, row, column):
        """Cell (row, column) is centred on pixel 4 row + 1.5, 4 column + 1.5; borders repeat."""
        picture = images(2, 32, 40)
        (block,) = ColourPatches(side)(picture)
        assert block.shape == (2, 3 * side * side, 8, 10) and ColourPatches(side).channels == (3 * side * side,)
        first = -(side - 4) // 2
        rows = (torch.arange(side) + 4 * row + first).clamp(0, 31)
        columns = (torch.arange(side) + 4 * column + first).clamp(0, 39)
        expected = picture[:, :, rows][:, :, :, columns]
        assert torch.equal(block[:, :, row, column], expected.flatten(1))

    def test_patch_side_out_of_range(self):
        with pytest.raises(ValueError, match="side must be a multiple of the stride 4, got 10"):
            ColourPatches(10)
