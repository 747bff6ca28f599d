"""Charts: curves, costs and trials are where the numbers are, and say what they show."""

import io
from itertools import pairwise
from statistics import fmean

import numpy
import pytest
import torch
from matplotlib.figure import Figure

from lead_ray.figures import cost, curves, panels, trials
from lead_ray.figures.curves import Series
from lead_ray.reporting import drawing

NAN = float("nan")


def drawn(figure):
    """It draws without a warning, every text is large enough, and none leaves the page at the right."""
    assert isinstance(figure, Figure) and figure.get_label()
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 8
    names = [text for panel in figure.axes for text in panel.texts]
    assert all(text.get_window_extent().x1 <= figure.bbox.width + 1 for text in names)
    return figure


def test_series_are_means_with_deviations():
    series = [
        Series(name="LEAD", places=[1, 10], values=[[20.0, 24.0], [9.0, 11.0]]),
        Series(name="the paper's", places=[1, 10], values=[[21.8], [11.5]], printed=True),
    ]
    figure = drawn(curves.against(series, x="annotated images", y="error, %", title="n = 5"))
    panel = figure.axes[0]
    assert panel.get_xscale() == "log" and panel.get_ylim()[0] == 0
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["1", "10"]
    (line, _, (bar,)), (printed, *_) = (container.lines for container in panel.containers)
    assert line.get_xydata().tolist() == [[1, 22], [10, 10]]
    spread = [segment[:, 1].tolist() for segment in bar.get_segments()]
    assert spread[0] == pytest.approx([22 - 8**0.5, 22 + 8**0.5])
    assert printed.get_linestyle() == "--" and printed.get_color() == drawing.GREY
    assert {text.get_text() for text in panel.texts} == {"LEAD", "the paper's"}
    assert "LEAD 22 at 1, 10 at 10" in figure.get_label()


def test_a_sweep_need_not_begin_at_zero():
    one = [Series(name="", places=[0.02, 0.05], values=[[4.0], [4.5]])]
    assert drawn(curves.against(one, x="temperature", y="px", from_zero=False)).axes[0].get_ylim()[0] > 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: curves.against([], x="", y=""), "at least one"),
        (lambda: curves.against([Series(name="a", places=[0], values=[[1.0]])], x="", y=""), "log_x=False"),
        (lambda: Series(name="a", places=[1, 2], values=[[1.0]]), "series 'a' needs a place and at least one value"),
        (lambda: Series(name="a", places=[1], values=[[]]), "series 'a'"),
        (lambda: curves.distribution({}, limit=10.0), "at least one system"),
        (lambda: curves.zoom({}, torch.tensor([1.0, 2.0]), seen=(1.0, 1.5)), "0 systems"),
        (lambda: curves.zoom({"a": torch.ones(2)}, torch.ones(2), seen=(1.0, 1.5)), "factors that differ"),
        (lambda: cost.drawn([]), "none of 0 rows"),
        (lambda: cost.drawn([cost.Cost(system="a", dim=64)]), "none of 1 rows"),
        (lambda: cost.Cost(system="a", dim=0), "dim of 'a' must be > 0, got 0"),
        (lambda: trials.scatter(torch.full((2, 2), NAN), x="a", y="b"), "none of 2 trials"),
        (lambda: trials.scatter(torch.ones(2, 2), x="a", y="b", kinds=["k"]), "kinds must be as many as the 2"),
    ],
)
def test_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_distribution_is_a_staircase_with_its_area():
    figure = drawn(curves.distribution({"LEAD": torch.tensor([2.0, 8.0, NAN, 20.0, 10.0])}, limit=10.0))
    panel = figure.axes[0]
    assert panel.lines[0].get_xydata().tolist() == [[0, 0], [2, 25], [8, 50], [10, 75], [20, 100], [20, 100]]
    assert panel.lines[0].get_drawstyle() == "steps-post"
    assert panel.get_xlim() == (0, 10) and panel.get_ylim() == (0, 100)
    area = fmean([80, 20, 0, 0])
    assert [text.get_text() for text in panel.texts] == [f"LEAD\nAUC {area:.1f} %, beyond 25.0 %"]


def test_zoom_shades_what_training_did_not_see():
    factors = torch.tensor([1.0, 1.2, 1.4, 1.6, 1.8, 2.0])
    figure = drawn(curves.zoom({"LEAD": factors * 10}, factors, seen=(1.0, 1.5), ranges=2))
    panel = figure.axes[0]
    assert panel.lines[0].get_xydata() == pytest.approx(numpy.array([[1.25, 12.0], [1.75, 18.0]]))
    shaded = [patch.get_x() for patch in panel.patches]
    assert shaded == [1.5] and panel.patches[0].get_width() == pytest.approx(0.5)
    assert {"seen in training", "unseen", "LEAD"} == {text.get_text() for text in panel.texts}


def test_a_range_with_one_image_has_no_band():
    factors = torch.tensor([1.0, 1.1, 1.9])
    panel = drawn(curves.zoom({"LEAD": torch.tensor([1.0, 3.0, 8.0])}, factors, seen=(1.0, 2.0), ranges=2)).axes[0]
    places = numpy.concatenate([path.vertices for path in panel.collections[0].get_paths() or []])
    assert not (places[:, 0] > 1.5).any()


def test_zoom_within_what_was_seen_shades_nothing():
    factors = torch.tensor([1.1, 1.4])
    panel = drawn(curves.zoom({"LEAD": torch.ones(2)}, factors, seen=(1.0, 1.5), ranges=2)).axes[0]
    assert not panel.patches and "unseen" not in {text.get_text() for text in panel.texts}


def test_names_do_not_overlap_and_stay_beside_the_axes():
    series = [Series(name=f"system {i}", places=[1, 2], values=[[50.0], [0.1 * i]]) for i in range(6)]
    figure = drawn(curves.against(series, x="n", y="%"))
    heights = sorted(text.get_window_extent().y0 for text in figure.axes[0].texts)
    tall = figure.axes[0].texts[0].get_window_extent().height
    assert all(later - earlier >= 0.95 * tall for earlier, later in pairwise(heights))
    assert heights[0] >= figure.axes[0].bbox.y0 - tall


def test_cost_has_a_panel_for_what_is_given():
    given = (("built", 64, 9.0, 0.1), ("built", 3840, 95.0, 8.8), ("ours", 64, 1.0, None), ("ours", 3840, 3.6, None))
    rows = [cost.Cost(system=name, dim=dim, milliseconds=m, gflops=g) for name, dim, m, g in given]
    time, products = drawn(cost.drawn(rows)).axes
    assert [line.get_xydata().tolist() for line in time.lines] == [[[64, 9], [3840, 95]], [[64, 1], [3840, 3.6]]]
    assert len(products.lines) == 1
    assert [tick.get_text() for tick in time.get_xticklabels()] == ["64", "3,840"]
    assert len(drawn(cost.drawn([cost.Cost(system="a", dim=64, gflops=1.0)])).axes) == 1


def test_the_front_is_marked():
    values = torch.tensor([[1.0, 5.0], [2.0, 2.0], [3.0, 1.0], [3.0, 3.0], [NAN, 0.0]])
    names = [f"#{i}" for i in range(5)]
    kinds = ["byol", "moco", "byol", "moco", "byol"]
    figure = drawn(trials.scatter(values, x="matching, px", y="regression, %", kinds=kinds, labels=names))
    panel = figure.axes[0]
    assert panel.lines[-1].get_xydata().tolist() == [[1, 5], [2, 2], [3, 1]]
    assert [text.get_text() for text in panel.texts] == ["#0", "#1", "#2"]
    shown = sorted(tuple(place) for marks in panel.collections for place in marks.get_offsets().tolist())
    assert shown == [(1, 5), (2, 2), (3, 1), (3, 3)]
    assert [text.get_text() for text in panel.get_legend().get_texts()][:2] == ["byol", "moco"]
    assert "1, 5; 2, 2; 3, 1" in figure.get_label()


def test_the_front_where_more_is_better():
    values = torch.tensor([[1.0, 5.0], [2.0, 2.0], [3.0, 1.0]])
    panel = drawn(trials.scatter(values, x="a", y="b", higher=(True, False))).axes[0]
    assert panel.lines[-1].get_xydata().tolist() == [[3, 1]]


def test_colours_differ():
    assert drawing.colours(3) == list(drawing.PALETTE[:3])
    for count in (9, 30):
        assert len(set(drawing.colours(count))) == count


class TestPanels:
    """One look a system in every panel; printed values pale beside measured ones."""

    def series(self):
        measured = {
            name: Series(name=name, places=[64, 128], values=[[v], [v - 1]]) for name, v in (("CL", 9.0), ("LEAD", 8.0))
        }
        return measured, Series(name="LEAD", places=[64, 128], values=[[3.0], [2.5]], printed=True)

    def test_a_system_looks_the_same_everywhere(self):
        measured, printed = self.series()
        both = panels.Panel(title="A", y="error, %", series=[measured["CL"], measured["LEAD"], printed])
        one = panels.Panel(title="B", y="error, px", series=[measured["LEAD"]])
        figure = drawn(panels.side_by_side([both, one], x="channels"))
        cl, lead, paper, other = (each.lines[0] for axes in figure.axes for each in axes.containers)
        assert lead.get_color() == paper.get_color() == other.get_color() != cl.get_color()
        assert lead.get_marker() == paper.get_marker() and (lead.get_linestyle(), paper.get_linestyle()) == ("-", "--")
        assert paper.get_xydata().tolist() == [[64, 3], [128, 2.5]]
        (legend,) = figure.legends
        names = [text.get_text() for text in legend.get_texts()]
        assert names == ["CL", "LEAD", "printed by the paper, of its own networks"]
        assert "LEAD (printed) 3 at 64, 2.5 at 128" in figure.get_label()

    def test_one_scale_for_one_quantity(self):
        measured, printed = self.series()
        each = [
            panels.Panel(title=name, y="%", series=[line]) for name, line in (("A", measured["CL"]), ("B", printed))
        ]
        tops = [axes.get_ylim() for axes in drawn(panels.side_by_side(each, x="n", same_scale=True)).axes]
        assert tops[0] == tops[1] and tops[0][0] == 0
        tops = [axes.get_ylim()[1] for axes in drawn(panels.side_by_side(each, x="n")).axes]
        assert tops[0] > 2 * tops[1]

    def test_what_cannot_be_drawn(self):
        with pytest.raises(ValueError, match="panels must hold at least one"):
            panels.side_by_side([], x="n")
        with pytest.raises(ValueError, match="panel 'A' needs at least one series"):
            panels.Panel(title="A", y="%", series=[])
        nothing = panels.Panel(title="A", y="%", series=[Series(name="a", places=[0], values=[[1.0]])])
        with pytest.raises(ValueError, match="places must be > 0 on a logarithmic axis, got 0"):
            panels.side_by_side([nothing], x="n")


def test_two_settings_and_the_error_that_they_give():
    tried = [trials.Tried(0.02, 0.1, 9.5), trials.Tried(0.3, 0.03, 12.0), trials.Tried(0.2, 0.2, None)]
    names = {"first": "a", "second": "b", "y": "error, px", "ticks": (0.01, 0.1, 0.5)}
    figure = drawn(trials.over_two({0.05: [10.0, 11.0]}, tried, **names))
    left, right, _ = figure.axes
    (grid,) = (each.lines[0] for each in left.containers)
    assert grid.get_xydata().tolist() == [[0.05, 10.5]]
    assert left.collections[-1].get_offsets().tolist() == [[0.02, 9.5], [0.3, 12.0]]
    stopped, ring, marks = right.collections
    assert stopped.get_offsets().tolist() == [[0.2, 0.2]]
    assert ring.get_offsets().tolist() == [[0.02, 0.1]], "the best"
    assert marks.get_offsets().tolist() == [[0.02, 0.1], [0.3, 0.03], [0.05, 0.05]]
    assert marks.get_array().tolist() == [9.5, 12.0, 10.5]
    assert "stopped early: 1" in figure.get_label()
    assert drawn(trials.over_two({}, tried[:1], **names)) and drawn(trials.over_two({0.05: [1.0]}, [], **names))
    with pytest.raises(ValueError, match="none of 1 trials ended and the grid is empty"):
        trials.over_two({}, tried[2:], **names)
