"""Distributions, means by range and fronts: by hand, and beside slow loops."""

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lead_ray.summary import by_range, cumulative, pareto_front

NAN = float("nan")
numbers = st.lists(st.floats(0, 50, width=32), min_size=1, max_size=30)


def test_cumulative_by_hand():
    found = cumulative(torch.tensor([8.0, NAN, 2.0, 20.0, 10.0]), limit=10.0)
    assert found.errors.tolist() == [2, 8, 10, 20]
    # From 2 on a quarter of the images, from 8 on a half, at 10 no area is left.
    assert found.auc == pytest.approx(100 * (0.25 * 6 + 0.5 * 2) / 10)
    assert found.failures == pytest.approx(25.0), "an error at the limit is none"


@given(numbers, st.floats(0.5, 60, width=32))
def test_the_area_is_that_below_the_stairs(errors, limit):
    found = cumulative(torch.tensor(errors), limit=limit)
    grid = numpy.linspace(0, limit, 20001)
    share = [(numpy.array(errors)[:, None] <= grid).mean(0)]
    assert found.auc == pytest.approx(100 * numpy.mean(share), abs=0.2)
    assert 0 <= found.auc <= 100 and 0 <= found.failures <= 100


@pytest.mark.parametrize(("errors", "limit", "said"), [([1.0], 0.0, "limit must be > 0"), ([NAN], 1.0, "no image")])
def test_no_distribution_of_nothing(errors, limit, said):
    with pytest.raises(ValueError, match=said):
        cumulative(torch.tensor(errors), limit=limit)


def test_by_range_by_hand():
    places = torch.tensor([0.0, 0.9, 1.0, 2.0, 2.1, -0.1, 0.5])
    values = torch.tensor([1.0, 3.0, 7.0, 9.0, 50.0, 60.0, NAN])
    found = by_range(places, values, torch.tensor([0.0, 1.0, 2.0, 2.05]))
    assert found.centre.tolist() == pytest.approx([0.5, 1.5, 2.025])
    assert found.count.tolist() == [2, 1, 1]
    assert found.mean.tolist() == [2, 7, 9]
    assert found.standard_error[0].item() == pytest.approx(2**0.5 / 2**0.5)
    assert found.standard_error[1:].isnan().all()
    empty = by_range(places, values, torch.tensor([5.0, 6.0]))
    assert empty.count.tolist() == [0] and empty.mean.isnan().all()


def test_the_last_edge_belongs_to_the_last_range():
    found = by_range(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.0, 1.0, 2.0]))
    assert found.count.tolist() == [1, 2]
    assert found.mean.tolist() == [1, 4]


def test_edges_ascend():
    for edges in ([1.0], [1.0, 1.0], [2.0, 1.0]):
        with pytest.raises(ValueError, match="ascending"):
            by_range(torch.zeros(1), torch.zeros(1), torch.tensor(edges))


def test_pareto_front_by_hand():
    values = torch.tensor([[1.0, 5.0], [2.0, 2.0], [3.0, 1.0], [3.0, 2.0], [2.0, 2.0], [NAN, 0.0]])
    assert pareto_front(values).tolist() == [True, True, True, False, True, False]
    assert pareto_front(values, higher=(True, False)).tolist() == [False, False, True, False, False, False]
    with pytest.raises(ValueError, match="each of the 2 aims"):
        pareto_front(values, higher=(True,))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25))
def test_pareto_front_is_what_a_slow_loop_finds(rows):
    def beats(a, b):
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    expected = [not any(beats(other, row) for other in rows) for row in rows]
    assert pareto_front(torch.tensor(rows, dtype=torch.float32)).tolist() == expected
