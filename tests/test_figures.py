"""Figures: the marks are where the numbers are, and no global state of matplotlib is touched."""

import io

import numpy
import pytest
import torch
from matplotlib.figure import Figure
from torch.nn import functional

from lead_ray.figures import correspondence, curves, faces
from lead_ray.reporting.drawing import PALETTE


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def pictures(count, generator, size=96):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def marks(panel, kind):
    """Places of all marks of one kind: "+" crosses, "ring" or "dot"."""
    lines = [line for line in panel.lines if line.get_marker() == ("+" if kind == "+" else "o")]
    if kind != "+":
        lines = [line for line in lines if (line.get_markerfacecolor() == "none") == (kind == "ring")]
    return [tuple(line.get_xydata()[0].tolist()) for line in lines]


def drawn(figure):
    """The figure as PNG: it draws without a warning."""
    assert isinstance(figure, Figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=40)
    assert figure.get_label(), "a figure says in words what it shows"
    return out.getvalue()


def test_spread_by_hand():
    errors = torch.tensor([5.0, 1.0, float("nan"), 3.0, 2.0, 4.0])
    assert faces.spread(errors, 3).tolist() == [1, 3, 0]
    assert faces.spread(errors, 5).tolist() == [1, 4, 3, 5, 0]
    assert faces.spread(errors, 1).tolist() == [3]
    with pytest.raises(ValueError, match=r"count must be in 1\.\.5, the images with an error, got 6"):
        faces.spread(errors, 6)


def test_loss_curves_show_the_history_and_its_bound():
    first = [{"step": step, "loss": 3 / step, "images_per_second": 100.0 + step} for step in (1, 2, 3)]
    second = [{"step": step, "loss": 5.0, "teacher_entropy": 4.0} for step in (10, 20)]
    figure = curves.loss_curves({"stage 1": first, "stage 2": second})
    drawn(figure)
    left, right = figure.axes
    assert left.lines[0].get_xydata().tolist() == [[1, 3], [2, 1.5], [3, 1]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[5, 5], [4, 4]]
    assert left.get_title("left") == "stage 1"
    assert left.get_title("right") == "102 images/s"
    assert [text.get_text() for text in right.texts] == [
        "loss 5.00",
        "teacher's entropy 4.00, the lower bound",
    ]


def test_loss_curves_show_a_single_entry_and_refuse_none():
    figure = curves.loss_curves({"stage 1": [{"step": 1, "loss": 2.0}]})
    drawn(figure)
    assert figure.axes[0].lines[0].get_marker() == "o"
    for empty in ({}, {"stage 1": []}):
        with pytest.raises(ValueError, match="at least one entry"):
            curves.loss_curves(empty)


def hypercolumn_heat(blocks, source, target, point, temperature):
    """Softmax of mean cosines [96, 96] with every block upsampled: the plain form."""
    cosines = 0
    for block in blocks:
        full = functional.interpolate(block.float(), size=(96, 96), mode="bilinear", align_corners=False)
        full = functional.normalize(full, dim=1)
        query = full[source, :, round(point[1]), round(point[0])]
        cosines = cosines + torch.einsum("c,chw->hw", query, full[target]) / len(blocks)
    return (cosines / temperature).flatten().softmax(0).view(96, 96)


def test_correspondence_marks_the_most_similar_pixel(generator):
    blocks = [torch.randn(3, 16, side, side, generator=generator).half() for side in (24, 12)]
    points = torch.tensor([[30.0, 40.0], [70.2, 55.9]])
    truth = 96 * torch.rand(3, 2, 2, generator=generator)
    figure = correspondence.heat_maps(pictures(3, generator), blocks, 1, points, names=["eye", "nose"], truth=truth)
    drawn(figure)
    panels = numpy.array(figure.axes).reshape(2, 3)
    for row, point in enumerate(points.tolist()):
        assert marks(panels[row, 0], "dot") == [pytest.approx(point)]
        assert panels[row, 0].get_ylabel() == ("eye", "nose")[row]
        for panel, target in zip(panels[row, 1:], (0, 2), strict=True):
            expected = hypercolumn_heat(blocks, 1, target, point, 0.05)
            best = divmod(int(expected.argmax()), 96)
            assert marks(panel, "+") == [(best[1], best[0])]
            assert marks(panel, "ring") == [pytest.approx(truth[target, row].tolist())]
            heat = panel.images[1].get_array()
            assert numpy.abs(heat - (expected / expected.max()).numpy()).max() < 1e-3
            crosses = [line for line in panel.lines if line.get_marker() == "+"]
            assert [line.get_color() for line in crosses] == [PALETTE[row]]


def test_correspondence_without_truth_has_no_rings(generator):
    blocks = [torch.randn(2, 8, 24, 24, generator=generator)]
    figure = correspondence.heat_maps(pictures(2, generator), blocks, 0, torch.tensor([[9.0, 9.0]]))
    assert [marks(panel, "ring") for panel in figure.axes] == [[], []]


@pytest.mark.parametrize(("count", "source"), [(2, 2), (2, -1), (1, 0)])
def test_correspondence_needs_a_source_and_a_target(generator, count, source):
    blocks = [torch.randn(count, 8, 24, 24, generator=generator)]
    with pytest.raises(ValueError, match=f"source must be in .* got {source}"):
        correspondence.heat_maps(pictures(count, generator), blocks, source, torch.zeros(1, 2))


def test_arrows_lead_from_the_source_to_the_prediction(generator):
    starts, ends, truth = (96 * torch.rand(4, 2, 2, generator=generator) for _ in range(3))
    images = pictures(8, generator)
    figure = faces.matching_arrows(images[:4], images[4:], starts, ends, truth)
    drawn(figure)
    assert [panel.axison for panel in figure.axes] == [True] * 4 + [False] * 2
    for k, panel in enumerate(figure.axes[:4]):
        left, right = (image.get_extent() for image in panel.images)
        assert left == [-0.5, 95.5, 95.5, -0.5]
        offset = torch.tensor([right[0] + 0.5, 0.0])
        arrows = [(note.xyann, note.xy) for note in panel.texts]
        expected = zip(starts[k].tolist(), (ends[k] + offset).tolist(), strict=True)
        assert arrows == [(pytest.approx(start), pytest.approx(end)) for start, end in expected]
        assert marks(panel, "dot") == [pytest.approx(start) for start in starts[k].tolist()]
        assert marks(panel, "ring") == [pytest.approx(true) for true in (truth[k] + offset).tolist()]


def test_one_source_may_serve_all_targets(generator):
    start, ends = torch.full((1, 1, 2), 20.0), torch.full((3, 1, 2), 30.0)
    figure = faces.matching_arrows(pictures(1, generator), pictures(3, generator), start, ends, columns=2)
    drawn(figure)
    assert [marks(panel, "dot") for panel in figure.axes] == [[(20.0, 20.0)]] * 3 + [[]]


def test_landmarks_are_rings_dots_and_the_line_between(generator):
    predicted, truth = (96 * torch.rand(3, 5, 2, generator=generator) for _ in range(2))
    truth[2, 0] = float("nan")
    errors = torch.tensor([1.23, 4.0, 20.0])
    labels = ["best", "", "worst"]
    figure = faces.landmarks(pictures(3, generator), predicted, truth, errors, labels=labels, columns=2)
    drawn(figure)
    for i, panel in enumerate(figure.axes[:2]):
        assert marks(panel, "dot") == [pytest.approx(point) for point in predicted[i].tolist()]
        assert marks(panel, "ring") == [pytest.approx(point) for point in truth[i].tolist()]
        lines = [line.get_xydata() for line in panel.lines if line.get_marker() == "None"]
        expected = torch.stack([predicted[i], truth[i]], dim=1).numpy()
        assert numpy.array(lines) == pytest.approx(expected)
    assert [panel.get_xlabel().split() for panel in figure.axes[:2]] == [["best", "1.2", "%"], ["4.0", "%"]]
    assert not figure.axes[3].axison


def test_pixels_are_shown_as_they_are(generator):
    images = pictures(1, generator)
    figure = faces.landmarks(images, torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.zeros(1))
    image = figure.axes[0].images[0]
    assert (image.get_array() == images[0].permute(1, 2, 0).numpy()).all()
    assert image.get_extent() == [-0.5, 95.5, 95.5, -0.5]


def test_fonts_are_large_enough(generator):
    blocks = [torch.randn(2, 8, 24, 24, generator=generator)]
    shown = [
        curves.loss_curves({"stage 1": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}),
        correspondence.heat_maps(pictures(2, generator), blocks, 0, torch.tensor([[9.0, 9.0]]), names=["eye"]),
    ]
    for figure in shown:
        drawn(figure)
        texts = figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))
        assert min(text.get_fontsize() for text in texts if text.get_text()) >= 8
