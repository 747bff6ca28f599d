"""Work shared out over torch's threads: every part once, errors, and whose threads they are."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lead_ray import threads
from lead_ray.machine_code import HONEST, compiler


@pytest.fixture(params=[None, "others"], ids=["torch's", "others"])
def whose(request, monkeypatch):
    """Torch's own, or those of a machine whose OpenMP is not known."""
    if request.param == "others":
        monkeypatch.setattr(threads, "_parallel", lambda: None)


@pytest.fixture
def three():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@settings(max_examples=50)
@given(count=st.integers(0, 40), number=st.integers(1, 5), own=st.booleans())
def test_every_place_is_in_one_part(count, number, own):
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(number)
    try:
        with pytest.MonkeyPatch.context() as patch:
            if not own:
                patch.setattr(threads, "_parallel", lambda: None)
            threads.shared(lambda first, last: found.append((first, last)), count)
    finally:
        torch.set_num_threads(before)
    assert sorted(place for first, last in found for place in range(first, last)) == list(range(count))
    sizes = [last - first for first, last in found]
    assert len(sizes) == max(1, min(count, number)) and max(sizes) - min(sizes) <= 1


@compiler(HONEST)
def _doubled(values, result):
    for place in range(len(values)):
        result[place] = 2 * values[place]


def test_machine_code_from_several_threads_at_once(three, whose):
    """As prefetching and training may ask at the same time."""
    values = np.arange(50_000.0)
    results = [np.zeros_like(values) for _ in range(2)]

    def ask(result) -> None:
        for _ in range(5):
            threads.shared(lambda first, last: _doubled(values[first:last], result[first:last]), len(values))

    askers = [threading.Thread(target=ask, args=[result]) for result in results]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    for result in results:
        np.testing.assert_array_equal(result, 2 * values)


@pytest.mark.parametrize("kind", [ValueError, IndexError, KeyboardInterrupt])
def test_what_a_part_raises_is_raised(three, whose, kind):
    ended = []

    def part(first, last) -> None:
        if first == 0:
            raise kind("the first part")
        ended.append(first)

    with pytest.raises(kind, match="the first part"):
        threads.shared(part, 30)
    threads.shared(lambda first, last: ended.append(first), 30)
    assert {0, 10, 20} <= set(ended), "and the next call is served as ever"


def test_they_are_torchs_own(three):
    """No thread more than torch's operators have started already."""
    assert threads._parallel() is not None, "torch's wheels for Linux bring GNU's OpenMP"

    def count() -> int:
        return len(os.listdir("/proc/self/task"))

    found = []

    def ask() -> None:
        torch.rand(1000, 1000).exp_()
        before = count()
        seen = []
        threads.shared(lambda first, last: seen.append(first), 3)
        found.extend([count() - before, len(seen)])

    asker = threading.Thread(target=ask)  # whose team is its own
    asker.start()
    asker.join()
    assert found == [0, 3]


def test_another_openmp(three, monkeypatch, tmp_path):
    """A torch without the library: threads of Python's."""
    monkeypatch.setattr(torch, "__file__", str(Path(tmp_path) / "__init__.py"))
    threads._parallel.cache_clear()
    try:
        assert threads._parallel() is None
        seen = []
        threads.shared(lambda first, last: seen.append(last - first), 30)
        assert seen == [10, 10, 10]
    finally:
        threads._parallel.cache_clear()
