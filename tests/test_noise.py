"""JPEG and colour noise, and the crop after the crop: held to torchvision's own steps and to values by hand."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from descriptors import generator
from PIL import Image
from torchvision.transforms import functional

from lead_ray.augmentation import noise
from lead_ray.augmentation.augment import FACE_MEAN, FACE_STD
from lead_ray.augmentation.noise import Noise, noisy_views
from lead_ray.augmentation.views import ViewSettings, two_views
from lead_ray.augmentation.warped import cl_noise, cl_views, dve_noise, dve_views, dve_warper, warped_views

PLAIN = ViewSettings(
    size=64, scale=(1.0, 1.0), flip=0.0, jitter=0.0, grey=0.0, blur=(0.0, 0.0), solarise=(0.0, 0.0)
)  # fmt: skip


def pictures(n: int = 4, size: int = 64) -> torch.Tensor:
    coarse = torch.rand(n, 3, 7, 7, generator=generator())
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return (255 * smooth).byte()


def views(images: torch.Tensor, how: Noise, seed: int = 0, settings: ViewSettings = PLAIN, rows=None):
    rows = torch.arange(len(images)) if rows is None else rows
    total = len(images) if rows is None else int(rows.max()) + 1
    return noisy_views(images, images, settings, how, total=total, rows=rows, generator=generator(seed))


class TestJpeg:
    @pytest.mark.parametrize(("side", "quality"), [(51, 30), (64, 98), (97, 60)])
    def test_as_torchvision_and_pillow_do_it_one_by_one(self, side, quality):
        images = pictures()
        got = noise.jpeg(images, [side] * 4, [quality] * 4)
        for image, mine in zip(images, got, strict=True):
            buffer = io.BytesIO()
            resized = functional.resize(functional.to_pil_image(image), [side, side])
            resized.save(buffer, format="JPEG", quality=quality)
            theirs = functional.resize(Image.open(buffer), [64, 64])
            np.testing.assert_array_equal(mine, functional.pil_to_tensor(theirs))

    def test_low_quality_loses_more(self):
        images = pictures()
        lost = [
            (noise.jpeg(images, [64] * 4, [quality] * 4).float() - images.float()).abs().mean()
            for quality in (10, 50, 98)
        ]
        assert lost[0] > lost[1] > lost[2] > 0

    def test_sides_and_qualities_are_drawn_as_asked(self):
        how = Noise(jpeg=True, quality=(30, 98), zoom=0.5)
        sides, qualities = noise._draw_jpeg(100, how, 4000, torch.arange(4000), generator())
        factors = 1 + 0.5 * torch.randn(4000, generator=generator())
        assert sides == [max(80, int(100 * factor)) for factor in factors.tolist()]
        assert min(sides) == 80 and max(sides) > 200
        assert (min(qualities), max(qualities)) == (30, 98)


class TestColour:
    def test_by_hand(self):
        """Strength 1 along the first component: 0.2175 times its vector, in deviations of faces' colours."""
        shift = noise.colour_shift(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))
        first = np.array([-0.5675, -0.5808, -0.5836]) * 0.2175 / np.array(FACE_STD)
        second = np.array([0.7192, -0.0045, -0.6948]) * 0.0188 * 0.5 / np.array(FACE_STD)
        np.testing.assert_allclose(shift.flatten(1), [first, second], rtol=1e-5)

    def test_one_colour_is_added_to_a_whole_view(self):
        images = pictures()
        clean, noisy = (views(images, how) for how in (Noise(), Noise(pca=0.1)))
        added = [(b - a).flatten(2) for a, b in zip(clean, noisy, strict=True)]
        for each in added:
            torch.testing.assert_close(each, each[..., :1].expand_as(each), rtol=0, atol=1e-5)
        assert not torch.allclose(added[0], added[1]), "each view has its own"
        strengths = torch.randn(4, 3, generator=self.after_two_views(images))
        torch.testing.assert_close(added[0][..., :1, None], noise.colour_shift(0.1 * strengths), rtol=0, atol=1e-5)

    def after_two_views(self, images: torch.Tensor) -> torch.Generator:
        spent = generator()
        two_views(images, images, PLAIN, total=4, rows=torch.arange(4), generator=spent)
        return spent


class TestViews:
    def test_without_noise_nothing_changes(self):
        images, rows = pictures(), torch.arange(4)
        expected = two_views(images, images, cl_views(), total=4, rows=rows, generator=generator())
        for got, known in zip(views(images, Noise(), settings=cl_views()), expected, strict=True):
            assert torch.equal(got, known)

    def test_jpeg_comes_before_and_the_crop_after(self):
        """CL's second crop: the centre of what the first one made, of the compressed image."""
        images = pictures(size=136)
        got, _ = views(images, replace(cl_noise(), pca=0.0), settings=replace(PLAIN, size=136))
        sides, qualities = noise._draw_jpeg(136, cl_noise(), 4, torch.arange(4), generator())
        compressed = noise.jpeg(images, sides, qualities).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (FACE_MEAN, FACE_STD))
        expected = ((compressed - mean) / std)[:, :, 20:116, 20:116]
        torch.testing.assert_close(got.contiguous(), expected.contiguous(), rtol=0, atol=1e-4)
        assert got.is_contiguous(memory_format=torch.channels_last)

    def test_workers_share_the_draws_of_the_whole_batch(self):
        images, how = pictures(), replace(dve_noise(), zoom=0.2)
        whole = views(images, how)
        half = noisy_views(
            images[2:], images[2:], PLAIN, how, total=4, rows=torch.tensor([2, 3]), generator=generator()
        )  # fmt: skip
        for part, all_of in zip(half, whole, strict=True):
            torch.testing.assert_close(part, all_of[2:], rtol=0, atol=1e-6)

    def test_warped_views_keep_their_grid(self):
        images = pictures(size=104)
        common = {"margin": 20, "total": 4, "rows": torch.arange(4)}
        clean, noisy = (
            warped_views(images, dve_views(64), dve_warper(), **common, generator=generator(), noise=how)
            for how in (None, dve_noise())
        )
        assert torch.equal(clean[2], noisy[2]) and not torch.allclose(clean[0], noisy[0], atol=0.1)
        with pytest.raises(ValueError, match=r"noise.margin=20 is not for warped views"):
            warped_views(images, dve_views(64), dve_warper(), **common, generator=generator(), noise=cl_noise())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quality": (0, 50)}, r"noise.quality must satisfy 1 <= low <= high <= 100, got \(0, 50\)"),
        ({"quality": (60, 50)}, r"noise.quality"),
        ({"pca": -0.1}, r"noise.pca must be >= 0, got -0.1"),
        ({"margin": -1}, r"noise.margin must be >= 0"),
        ({"zoom": -1.0}, r"noise.zoom must be >= 0"),
    ],
)
def test_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Noise(**wrong)
