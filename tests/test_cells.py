"""Which values differ: Welch's test by hand and against scipy, and what may be called the best."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lead_ray.reporting.cells import Cell, Failed, Printed, Row, ahead, both_tails, welch


def cell(*values: float) -> Cell:
    mean = sum(values) / len(values)
    return Cell(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values))


def test_one_degree_of_freedom_by_hand():
    """Cauchy's distribution: P(|T| >= 1) = 1/2, P(|T| >= sqrt 3) = 1/3."""
    assert both_tails(1.0, 1.0) == pytest.approx(0.5, abs=1e-9)
    assert both_tails(math.sqrt(3), 1.0) == pytest.approx(1 / 3, abs=1e-9)
    assert both_tails(0.0, 7.3) == pytest.approx(1.0, abs=1e-6)


@given(st.floats(0, 12), st.floats(1, 400))
def test_tails_are_scipys(t, freedom):
    assert both_tails(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-6)


def test_welch_by_hand():
    """Variances 1 and 4 over 4 values each: t = 3 / sqrt(5/4), degrees (5/4)^2 / (1/48 + 1/3) = 75/17."""
    t, freedom = 3 / math.sqrt(1.25), 75 / 17
    found = welch(Cell(2.0, 1.0, 4), Cell(5.0, 2.0, 4))
    assert found == pytest.approx(both_tails(t, freedom), abs=1e-9)
    assert found == pytest.approx(0.0493, abs=5e-4)


numbers = st.lists(st.floats(-5, 5).map(lambda value: round(value, 2)), min_size=2, max_size=6)


@given(numbers, numbers)
def test_welch_is_scipys(first, second):
    if len({*first}) > 1 and len({*second}) > 1:
        expected = stats.ttest_ind(first, second, equal_var=False).pvalue
        assert welch(cell(*first), cell(*second)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "other", [Cell(9.0), Cell(9.0, 0.1), Cell(9.0, 0.1, 1), Cell(9.0, None, 3), Cell(9.0, 0.1, 3, of_one=True)]
)
def test_what_cannot_be_told_is_none(other):
    assert welch(Cell(1.0, 0.1, 3), other) is None


def test_values_that_do_not_vary():
    assert welch(Cell(1.0, 0.0, 3), Cell(1.0, 0.0, 3)) == 1.0
    assert welch(Cell(1.0, 0.0, 3), Cell(2.0, 0.0, 3)) == 0.0


@pytest.mark.parametrize(
    ("cells", "better", "place"),
    [
        ([cell(1.0, 1.1, 0.9), cell(2.0, 2.1, 1.9)], "lower", 0),
        ([cell(1.0, 1.1, 0.9), cell(2.0, 2.1, 1.9)], "higher", 1),
        ([cell(1.0, 1.1, 0.9), cell(1.1, 1.2, 1.0)], "lower", None),  # p = 0.29
        ([cell(1.0, 1.1, 0.9), cell(2.0, 2.1, 1.9), cell(0.0, 9.0, 3.0)], "lower", None),  # worse, but who knows
        ([cell(1.0, 1.1, 0.9), None, cell(2.0, 2.1, 1.9)], "lower", 0),
        ([cell(1.0, 1.1, 0.9), Cell(9.0)], "lower", None),
        ([cell(1.0, 1.1, 0.9), None], "lower", None),  # nothing to compare with
    ],
)
def test_the_best_differs_from_every_other(cells, better, place):
    assert ahead(cells, better) == place


def test_numbers_of_a_row_by_hand():
    row = Row("a", "", [Cell(2.5, 0.5, 3), None, Failed("no")], printed=[Printed(2.0, 0.1), Printed(4.0), None])
    assert row.numbers(0) == [2.5, 0.5, 3, 2.0, 0.1, 0.5]
    assert row.numbers(1) == [None, None, None, 4.0, None, None]
    assert row.numbers(2) == ["failed", None, None, None, None, None]
