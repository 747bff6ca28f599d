"""Teachers: maps of torchvision's and timm's networks, with random weights; nothing is fetched."""

import sys
import types

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lead_ray.augmentation.augment import normalise
from lead_ray.models import weights
from lead_ray.models.hypercolumn import similarity
from lead_ray.models.teacher import Teacher, TeacherSettings, as_map, load, module_names
from lead_ray.models.trunk import Trunk, TrunkSettings


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 2, size: int = 64) -> torch.Tensor:
    """In [0, 1]."""
    return torch.rand(n, 3, size, size, generator=generator())


class TinyTransformer(nn.Module):
    """timm's names: patches of 8 pixels, a class token and two registers, blocks that add their number."""

    def __init__(self, depth: int = 6, width: int = 4):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 3, width, generator=generator()))
        self.patch_embed = nn.Conv2d(3, width, 8, stride=8)
        self.blocks = nn.Sequential(*(Add(number) for number in range(depth)))
        self.head = nn.Linear(width, 5)

    def forward(self, images):
        tokens = self.patch_embed(images).flatten(2).mT
        tokens = self.blocks(torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], dim=1))
        return self.head(tokens[:, 0])


class Add(nn.Module):
    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def forward(self, tokens):
        return tokens + self.number


class TestTorchvision:
    @torch.no_grad()
    def test_a_resnets_maps_are_its_own_on_images_normalised_for_it(self, tmp_path):
        torch.manual_seed(0)
        theirs = torchvision.models.resnet18().eval()
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        teacher = load(TeacherSettings(network="resnet18", weights=tmp_path / "model.safetensors"))
        blocks = teacher(normalise(pictures()))
        usual = torchvision.transforms.functional.normalize(pictures(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        expected = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(usual)))))
        torch.testing.assert_close(blocks[0], expected, rtol=1e-4, atol=1e-4)
        assert [block.shape[1:] for block in blocks] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
        assert similarity(blocks, blocks, size=16).shape == (2, 256, 256)

    def test_a_vision_transformers_patches_are_laid_out_as_maps(self):
        torch.manual_seed(0)
        theirs = torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=4, num_heads=2, hidden_dim=8, mlp_dim=16
        )
        teacher = Teacher(theirs, TeacherSettings(network="vit_b_16", layers=(1, 3), size=32))
        blocks = teacher(normalise(pictures()))
        assert [block.shape for block in blocks] == [(2, 8, 4, 4)] * 2
        tokens = []
        theirs.encoder.layers[3].register_forward_hook(lambda _m, _i, out: tokens.append(out))
        teacher(normalise(pictures()))
        torch.testing.assert_close(blocks[1][:, :, 2, 1], tokens[0][:, 1 + 2 * 4 + 1])

    def test_swin_keeps_channels_last(self):
        torch.manual_seed(0)
        theirs = torchvision.models.SwinTransformer(
            patch_size=[4, 4], embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=[2, 2]
        )
        blocks = Teacher(theirs, TeacherSettings(network="swin_t", channels_last=True))(normalise(pictures()))
        assert [block.shape[1:] for block in blocks] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]

    def test_layers_by_name(self):
        teacher = load(TeacherSettings(network="resnet18", random=True, layers=("layer2.0", "layer4")))
        assert [block.shape[1] for block in teacher(pictures(1))] == [128, 512]

    def test_it_is_frozen_and_stays_in_evaluation_mode(self):
        teacher = load(TeacherSettings(network="resnet18", random=True)).train()
        assert not any(module.training for module in teacher.modules())
        assert not any(p.requires_grad for p in teacher.parameters())
        first, again = teacher(pictures(1)), teacher(pictures(1))
        assert len(first) == len(again) == 4 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not first[0].requires_grad and not teacher.seen


class TestTimm:
    @pytest.fixture
    def asked(self, monkeypatch):
        """timm's one function that is used here, and what it was asked for."""
        asked = []

        def create_model(name: str, pretrained: bool) -> nn.Module:
            asked.append((name, pretrained))
            return TinyTransformer()

        monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
        return asked

    def test_patches_without_class_and_registers(self, asked):
        teacher = load(TeacherSettings(network="timm/vit_tiny", random=True, layers=(0, 5), size=32))
        first, last = teacher(normalise(pictures()))
        assert asked == [("vit_tiny", False)]
        assert first.shape == last.shape == (2, 4, 4, 4)
        torch.testing.assert_close(last, first + 15)  # 1 + 2 + 3 + 4 + 5
        small = nn.functional.interpolate(normalise(pictures()), size=32, mode="bilinear", antialias=True)
        torch.testing.assert_close(first, teacher.network.patch_embed(small * teacher.scale + teacher.shift))

    def test_fetched_unless_told_otherwise(self, asked, tmp_path):
        load(TeacherSettings(network="timm/vit_tiny"))
        state = TinyTransformer().state_dict() | {"cls_token": torch.zeros(1, 3, 4)}
        del state["head.weight"]  # nobody needs the classifier
        torch.save({"teacher": {f"backbone.{name}": value for name, value in state.items()}}, tmp_path / "vit.pth")
        teacher = load(TeacherSettings(network="timm/vit_tiny", weights=tmp_path / "vit.pth"))
        assert asked == [("vit_tiny", True), ("vit_tiny", False)]
        assert not teacher.network.cls_token.any()

    def test_every_third_or_so_layer_up_to_the_last(self):
        assert module_names(TinyTransformer(12), ()) == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]
        assert module_names(TinyTransformer(6), ()) == ["blocks.2", "blocks.3", "blocks.4", "blocks.5"]
        assert module_names(TinyTransformer(2), ()) == ["blocks.0", "blocks.1"]

    def test_weights_of_another_network(self, asked, tmp_path):
        save_file({"cls_token": torch.zeros(1, 1, 4)}, tmp_path / "vit.safetensors")
        with pytest.raises(
            ValueError,
            match=r"does not hold a whole vit_tiny: 0 tensors .* 1 of another shape: cls_token",
        ):
            load(TeacherSettings(network="timm/vit_tiny", weights=tmp_path / "vit.safetensors"))

    def test_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ValueError, match=r"teacher.network='timm/vit_tiny' needs timm: uv pip install timm"):
            load(TeacherSettings(network="timm/vit_tiny", random=True))


class TestOwn:
    @torch.no_grad()
    def test_an_encoder_of_this_package_is_taken_as_it_is(self, tmp_path):
        torch.manual_seed(0)
        trunk = Trunk(TrunkSettings(depth=18, width=0.125)).eval()
        weights.save(tmp_path / "encoder.safetensors", trunk, {})
        for place in (tmp_path, tmp_path / "encoder.safetensors"):
            teacher = load(TeacherSettings(network=str(place)))
            assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
            for mine, theirs in zip(teacher(pictures()), trunk(pictures()), strict=True):
                torch.testing.assert_close(mine, theirs)

    def test_one_that_is_not_there(self):
        with pytest.raises(FileNotFoundError, match=r"no weights at none.safetensors"):
            load(TeacherSettings(network="none.safetensors"))


class TestErrors:
    def test_networks(self):
        for network in ("resnet999", "hub/resnet18"):
            with pytest.raises(ValueError, match=rf"must be a model of torchvision, .* got '{network}'"):
                load(TeacherSettings(network=network, random=True))

    def test_layers(self):
        network = torchvision.models.resnet18()
        with pytest.raises(ValueError, match=r"must name modules, such as conv1, .*layer1, .*; got layer5"):
            module_names(network, ("layer1", "layer5"))
        with pytest.raises(ValueError, match=r"must be names, or numbers below 0 .*, got \(2,\)"):
            module_names(network, (2,))
        with pytest.raises(ValueError, match=r"must be names, or numbers below 6 .*, got \(6,\)"):
            module_names(TinyTransformer(), (6,))
        with pytest.raises(ValueError, match=r"must name modules, such as 0; got none"):
            module_names(nn.Sequential(nn.Identity()), ())

    def test_outputs(self):
        with pytest.raises(ValueError, match=r"must name maps \[b, c, h, w\] or tokens \[b, n, c\], got \[2, 5\]"):
            as_map(torch.zeros(2, 5))
        with pytest.raises(ValueError, match=r"gave \[2, 6, 6, 96\], which looks like .*: set teacher.channels_last"):
            as_map(torch.zeros(2, 6, 6, 96))
        assert as_map(torch.zeros(2, 6, 6, 96), channels_last=True).shape == (2, 96, 6, 6)

    def test_settings(self, tmp_path):
        with pytest.raises(ValueError, match=r"teacher.random goes without teacher.weights, got "):
            TeacherSettings(network="resnet18", random=True, weights=tmp_path)
        with pytest.raises(ValueError, match=r"teacher.size must be >= 1, got 0"):
            TeacherSettings(network="resnet18", size=0)


def test_tokens_by_hand():
    """Seven tokens: three that stand for no patch, then a square of four, row by row."""
    tokens = torch.arange(7.0)[None, :, None]
    assert as_map(tokens).tolist() == [[[[3.0, 4.0], [5.0, 6.0]]]]
