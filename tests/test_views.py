"""Augmentation against torchvision, one operation at a time and all together; what is drawn, and for whom."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as torchvision

from lead_ray.augmentation import augment, augment_cpu, views
from lead_ray.augmentation.views import ViewSettings

NEVER = (0.0, 0.0)
PLAIN = ViewSettings(
    scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grey=0.0, blur=NEVER, solarise=NEVER, size=32
)

NO_SOLARISE = ViewSettings(solarise=NEVER)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_bytes(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), generator=generator(seed), dtype=torch.uint8)


def random_colours(n: int, side: int = 40) -> torch.Tensor:
    """Noise in [0, 1], with every combination of equal, zero and full channels in its first pixels."""
    images = torch.rand(n, 3, side, side, generator=generator())
    levels = torch.tensor([0.0, 0.4, 0.7, 1.0])
    corners = torch.cartesian_prod(levels, levels, levels).T  # 64 colours: greys, primaries, ties of two
    images[:, :, :2, :32] = corners.reshape(3, 2, 32)
    return images


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None]


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def resized_crop(image: torch.Tensor, box: torch.Tensor, size: int) -> torch.Tensor:
    return torchvision.resized_crop(
        image[None] / 255,
        *box.tolist(),
        [size, size],
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )[0].clamp(0, 1)  # the reference codes work on bytes, which cannot overshoot


class TestOneByOne:
    """Every operation against torchvision's on float images."""

    @pytest.mark.parametrize("size", [32, 96])
    def test_crop_resize_and_flip(self, size):
        boxes = [
            (0, 0, 120, 90),
            (3, 5, 40, 60),
            (60, 30, 60, 60),
            (119, 89, 1, 1),
            (0, 80, 120, 10),
            (7, 9, 96, 32),
        ]
        box, images = torch.tensor(boxes), random_bytes(6, 120, 90)
        flip = torch.tensor([False, True] * 3)
        got = augment.crop_resize(images, box, flip, size)
        for image, where, mirrored, view in zip(images, box, flip, got, strict=True):
            expected = resized_crop(image, where, size)
            close(view, torchvision.horizontal_flip(expected) if mirrored else expected, 2e-6)

    @settings(max_examples=30)
    @given(st.data())
    def test_resize_matrix_of_any_crop(self, data):
        full, size = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
        length = data.draw(st.integers(1, full))
        start = data.draw(st.integers(0, full - length))
        matrix = augment.resize_matrix(torch.tensor([start]), torch.tensor([length]), full, size)[0]
        line = torch.rand(3, full, 5, generator=generator())
        expected = torchvision.resize(
            line[:, start : start + length],
            [size, 5],
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        )
        close(matrix @ line, expected, 5e-6)
        outside = torch.ones(full, dtype=torch.bool)
        outside[start : start + length] = False
        assert not matrix[:, outside].any(), "the crop's surroundings must not leak into it"

    @pytest.mark.parametrize(
        ("ours", "theirs", "values", "tolerance"),
        [
            (augment._brightness, torchvision.adjust_brightness, (0.0, 0.6, 1.0, 1.4), 1e-6),
            (augment._contrast, torchvision.adjust_contrast, (0.0, 0.6, 1.0, 1.4), 1e-6),
            (augment._saturation, torchvision.adjust_saturation, (0.0, 0.8, 1.0, 1.2), 1e-6),
            (augment._hue, torchvision.adjust_hue, (-0.5, -0.1, 0.0, 0.03, 0.1, 0.5), 1e-5),
        ],
    )
    def test_colour(self, ours, theirs, values, tolerance):
        images = random_colours(len(values))
        got = ours(images, column(*values))
        for image, value, view in zip(images, values, got, strict=True):
            close(view, theirs(image, value), tolerance)

    def test_grey(self):
        images = random_colours(3)
        close(augment.luminance(images).expand(-1, 3, -1, -1), torchvision.rgb_to_grayscale(images, 3), 1e-6)

    def test_blur(self):
        sigma = torch.tensor([0.1, 0.5, 1.3, 2.0])
        images = random_colours(4)
        got = augment.gaussian_blur(images, sigma)
        for image, value, view in zip(images, sigma.tolist(), got, strict=True):
            close(view, torchvision.gaussian_blur(image, [17, 17], [value, value]), 1e-6)

    def test_solarise_inverts_from_128_up(self):
        ramp = torch.arange(256, dtype=torch.uint8).expand(1, 3, 256, 256).contiguous()
        parameters = views.draw(PLAIN, 1, (256, 256), 0, generator())._replace(solarise=torch.tensor([True]))
        got = augment.apply(ramp, parameters, 256)
        expected = torchvision.solarize(ramp, 128) / 255
        close(got, expected, 2e-6)


def one_by_one(image: torch.Tensor, parameters: views.ViewParameters, size: int):
    """apply() for one image, by torchvision; and where solarising hangs on a rounding error."""
    adjust = (
        torchvision.adjust_brightness,
        torchvision.adjust_contrast,
        torchvision.adjust_saturation,
        torchvision.adjust_hue,
    )
    view = resized_crop(image, parameters.box, size)
    if parameters.flip:
        view = torchvision.horizontal_flip(view)
    if parameters.jitter:
        for number in parameters.order.tolist():
            view = adjust[number](view, parameters.factors[number].item())
    if parameters.grey:
        view = torchvision.rgb_to_grayscale(view, 3)
    if parameters.sigma:
        view = torchvision.gaussian_blur(view, [17, 17], [parameters.sigma.item()] * 2)
    undecided = torch.zeros_like(view, dtype=torch.bool)
    if parameters.solarise:
        undecided = (view - 128 / 255).abs() < 1e-4
        view = torchvision.solarize(view, 128 / 255)
    return view, undecided


@pytest.fixture(params=[augment.apply, augment.apply_to_all, augment_cpu.apply], ids=["torch", "gpu", "cpu"])
def apply(request):
    """All ways of applying the same numbers."""
    return request.param


class TestApply:
    @pytest.mark.parametrize("view", [0, 1])
    def test_equals_torchvision_image_by_image(self, view, apply):
        n = 40
        often = ViewSettings(grey=0.3, solarise=(0.5, 0.5), blur=(0.5, 0.5), size=64)
        images = random_bytes(n, 136, 120)
        parameters = views.draw(often, n, (136, 120), view, generator(view))
        for field in ("flip", "jitter", "grey", "sigma", "solarise"):
            assert 0 < getattr(parameters, field).count_nonzero() < n, f"both cases of {field} must occur"
        got = apply(images, parameters, 64)
        for i in range(n):
            expected, undecided = one_by_one(images[i], parameters.rows(torch.tensor(i)), 64)
            close(got[i][~undecided], expected[~undecided], 2e-5)
            assert undecided.float().mean() < 0.01

    def test_chunks_change_nothing(self, monkeypatch):
        images = random_bytes(2 * augment.CPU_CHUNK + 3, 50, 50)
        parameters = views.draw(ViewSettings(), len(images), (50, 50), 1, generator())
        chunked = augment.apply(images, parameters, 32)
        monkeypatch.setattr(augment, "CPU_CHUNK", len(images))
        close(augment.apply(images, parameters, 32), chunked, 1e-6)

    def test_images_are_left_alone(self, apply):
        images = random_bytes(4, 50, 50)
        before = images.clone()
        apply(images, views.draw(ViewSettings(), 4, (50, 50), 0, generator()), 32)
        assert torch.equal(images, before)

    def test_memory_format_changes_nothing(self, apply):
        images = random_bytes(4, 50, 50)
        parameters = views.draw(ViewSettings(), 4, (50, 50), 1, generator())
        last = images.contiguous(memory_format=torch.channels_last)
        assert torch.equal(apply(last, parameters, 32), apply(images, parameters, 32))


class TestOnCpu:
    """The compiled path against the plain one."""

    @settings(max_examples=40, deadline=None)
    @given(
        st.integers(1, 160),
        st.integers(1, 160),
        st.integers(32, 130),
        st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
        st.integers(0, 1),
        st.integers(0, 99),
    )
    def test_equals_torch(self, height, width, size, scale, view, seed):
        how = ViewSettings(
            size=size, scale=(min(scale), max(scale)), blur=(0.7, 0.7), solarise=(0.5, 0.5), hue=0.5, grey=0.3
        )
        images = random_bytes(5, height, width, seed)
        parameters = views.draw(how, 5, (height, width), view, generator(seed))
        expected = augment.apply(images, parameters._replace(solarise=torch.zeros(5, dtype=torch.bool)), size)
        turned = parameters.solarise[:, None, None, None] & (expected >= 128 / 255)
        decided = (expected - 128 / 255).abs() > 1e-4
        got = augment_cpu.apply(images, parameters, size)
        close(got[decided], torch.where(turned, 1 - expected, expected)[decided], 3e-5)

    def test_normalises_into_channels_last(self):
        images = random_bytes(3, 50, 40)
        parameters = views.draw(ViewSettings(), 3, (50, 40), 0, generator())
        got = augment_cpu.apply(images, parameters, 48, augment.FACE_MEAN, augment.FACE_STD)
        close(got, augment.normalise(augment.apply(images, parameters, 48)), 3e-5)
        assert got.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("threads", [2, 3, 7])
    def test_threads_change_nothing(self, threads, monkeypatch):
        images = random_bytes(5, 50, 50)
        parameters = views.draw(ViewSettings(), 5, (50, 50), 0, generator())
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        alone = augment_cpu.apply(images, parameters, 32)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        assert torch.equal(augment_cpu.apply(images, parameters, 32), alone)

    def test_no_images(self):
        parameters = views.draw(ViewSettings(), 0, (50, 50), 0, generator())
        assert augment_cpu.apply(random_bytes(0, 50, 50), parameters, 32).shape == (0, 3, 32, 32)


class TestOnGpu:
    """What runs there, on a CPU."""

    def test_renders_what_a_cpu_does(self):
        images = random_bytes(12, 50, 60)
        parameters = views.draw(NO_SOLARISE, 12, (50, 60), 0, generator())
        close(views.whole_view(images, parameters.packed(), 32), views.render(images, parameters, 32), 2e-4)
        for there, here in zip(views.ViewParameters.unpacked(parameters.packed()), parameters, strict=True):
            assert there.dtype == here.dtype and torch.equal(there, here)

    def test_only_a_first_call_touches_the_filters_of_warnings(self, monkeypatch):
        """What torch says while it compiles is not passed on; later calls leave the process's warnings alone."""
        told = []

        def compiled(images, packed, size):
            warnings.warn("TensorFloat32 tensor cores are there", stacklevel=1)
            told.append(warnings.filters[0])
            return images

        monkeypatch.setattr(views, "has_triton", lambda: True)
        monkeypatch.setattr(views, "_compiled", lambda: compiled)
        monkeypatch.setattr(views, "_SEEN", set())
        images = random_bytes(2, 40, 40)
        packed = views.draw(NO_SOLARISE, 2, (40, 40), 0, generator()).packed()
        before = list(warnings.filters)
        views._on_gpu(images, packed, 32)
        assert told[0][0] == "ignore" and warnings.filters == before
        with pytest.warns(UserWarning, match="TensorFloat32"):
            views._on_gpu(images, packed, 32)
        views._on_gpu(images, packed, 48)
        assert told[2][0] == "ignore"


class TestCropBoxes:
    @given(
        height=st.integers(8, 300),
        width=st.integers(8, 300),
        scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
        ratio=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
        seed=st.integers(0, 2**31),
    )
    def test_inside_the_image_and_as_asked(self, height, width, scale, ratio, seed):
        how = ViewSettings(scale=tuple(scale), ratio=tuple(ratio))
        top, left, h, w = views._crop_boxes(how, 64, (height, width), generator(seed)).double().unbind(1)
        assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
        assert (top + h <= height).all() and (left + w <= width).all()
        whole = (h == height) & (w == width)  # also the fallback, which need not be as asked
        area, slack = height * width, 1e-3  # sides are rounded to whole pixels; float32 draws
        assert (whole | ((w - 0.5) * (h - 0.5) <= scale[1] * area + slack * area)).all()
        assert (whole | ((w + 0.5) * (h + 0.5) >= scale[0] * area - slack * area)).all()
        assert (whole | ((w - 0.5) / (h + 0.5) <= ratio[1] * (1 + slack))).all()
        assert (whole | ((w + 0.5) / (h - 0.5) >= ratio[0] * (1 - slack))).all()

    def test_the_whole_image_where_nothing_fits(self):
        how = ViewSettings(scale=(1.0, 1.0), ratio=(2.0, 3.0))
        boxes = views._crop_boxes(how, 20, (50, 50), generator())
        assert boxes.tolist() == [[0, 0, 50, 50]] * 20

    def test_every_place_is_as_likely(self):
        """64 of 100 pixels, square: 8 x 8 of 10 x 10 lie at 0, 1 or 2, each way."""
        how, n = ViewSettings(scale=(0.64, 0.64), ratio=(1.0, 1.0)), 3000
        corners = views._crop_boxes(how, n, (10, 10), generator())[:, :2]
        for along in corners.unbind(1):
            shares = (along.bincount(minlength=3) / n).tolist()
            assert shares == pytest.approx([1 / 3] * 3, abs=4 * math.sqrt(2 / 9 / n))

    def test_distribution_is_that_of_torchvision(self):
        n, (height, width), how = 3000, (136, 136), ViewSettings()
        ours = views._crop_boxes(how, n, (height, width), generator()).double()
        blank = torch.empty(3, height, width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            draws = [RandomResizedCrop.get_params(blank, [*how.scale], [*how.ratio]) for _ in range(n)]

        def statistics(boxes: torch.Tensor) -> torch.Tensor:
            top, left, h, w = boxes.unbind(1)
            terms = (
                h * w / (height * width),
                (w / h).log(),
                (w / h).log() ** 2,
                top + h / 2,
                left + w / 2,
                top,
            )
            return torch.stack([*terms, terms[0] ** 2], dim=1)

        ours, theirs = statistics(ours), statistics(torch.tensor(draws).double())
        standard_error = (ours.var(dim=0) / n + theirs.var(dim=0) / n).sqrt()
        assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 4 * standard_error).all()


class TestDraw:
    def test_only_the_generator_decides(self):
        torch.manual_seed(0)
        first = views.draw(ViewSettings(), 6, (136, 136), 1, generator(3))
        torch.manual_seed(1)
        again = views.draw(ViewSettings(), 6, (136, 136), 1, generator(3))
        other = views.draw(ViewSettings(), 6, (136, 136), 1, generator(4))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first.factors, other.factors)

    def test_ranges_and_frequencies(self):
        n, how = 4000, ViewSettings()
        a, b = (views.draw(how, n, (136, 136), view, generator(view)) for view in (0, 1))
        spread = 4 * math.sqrt(0.25 / n)
        for parameters, solarise in ((a, 0.0), (b, 0.2)):
            assert (parameters.order.sort(dim=1).values == torch.arange(4)).all()
            low, high = torch.tensor([[0.6, 0.6, 0.8, -0.1], [1.4, 1.4, 1.2, 0.1]])
            assert ((parameters.factors >= low) & (parameters.factors <= high)).all()
            expected = {"flip": 0.5, "jitter": 0.8, "grey": 0.2, "solarise": solarise}
            found = {name: getattr(parameters, name).double().mean().item() for name in expected}
            assert found == pytest.approx(expected, abs=spread)
        assert a.sigma.min() >= 0.1 and a.sigma.max() <= 2.0, "view a is always blurred"
        assert (b.sigma > 0).double().mean().item() == pytest.approx(0.1, abs=spread)

    def test_strong_jitter_never_turns_negative(self):
        drawn = views.draw(ViewSettings(brightness=3.0), 500, (40, 40), 0, generator())
        assert drawn.factors[:, 0].min() >= 0 and drawn.factors[:, 0].max() > 3


class TestTwoViews:
    def test_without_augmentation_they_are_the_normalised_images(self):
        images, others = random_bytes(3, 32, 32, seed=1), random_bytes(3, 32, 32, seed=2)
        a, b = views.two_views(images, others, PLAIN, total=3, rows=torch.arange(3), generator=generator())
        mean = torch.tensor([0.5084, 0.4224, 0.3769])[:, None, None]
        std = torch.tensor([0.2599, 0.2371, 0.2323])[:, None, None]
        close(a, (images / 255 - mean) / std, 2e-5)
        close(b, (others / 255 - mean) / std, 2e-5)
        assert a.is_contiguous(memory_format=torch.channels_last)

    def test_views_of_one_image_differ(self):
        images = random_bytes(2, 40, 40)
        a, b = views.two_views(
            images, images, ViewSettings(size=32), total=2, rows=torch.arange(2), generator=generator()
        )
        assert (a - b).abs().mean() > 0.1

    @settings(max_examples=10)
    @given(st.integers(1, 4), st.randoms(use_true_random=False))
    def test_what_an_image_gets_does_not_depend_on_who_shares_the_batch(self, workers, random):
        total, how = 8, ViewSettings(size=32)
        images = random_bytes(total, 40, 40)
        whole = views.two_views(images, images, how, total=total, rows=torch.arange(total), generator=generator(5))
        order = random.sample(range(total), total)
        for worker in range(workers):
            rows = torch.tensor(order[worker::workers])
            part = views.two_views(images[rows], images[rows], how, total=total, rows=rows, generator=generator(5))
            for mine, all_of_them in zip(part, whole, strict=True):
                close(mine, all_of_them[rows], 1e-5)


class TestErrors:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("flip", 1.5, r"views.flip is a probability in \[0, 1\], got 1.5"),
            ("jitter", -0.1, r"views.jitter is a probability"),
            ("scale", (0.5, 0.2), r"views.scale must satisfy 0 < low <= high <= 1, got \(0.5, 0.2\)"),
            ("scale", (0.0, 1.0), r"views.scale"),
            ("size", 16, r"views.size must be >= 32 .* got 16"),
            ("blur_sigma", (0.1, 3.0), r"views.blur_sigma must lie in \(0, 2.0\], got \(0.1, 3.0\)"),
        ],
    )
    def test_settings_out_of_range(self, field, value, message):
        with pytest.raises(ValueError, match=message):
            ViewSettings(**{field: value})
