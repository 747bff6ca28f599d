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


def test_parts_run_side_by_side(three, whose):
    """Each waits until all three have begun."""
    meeting = threading.Barrier(3)
    threads.shared(lambda first, last: meeting.wait(60), 30)
    assert not meeting.broken


@pytest.mark.parametrize("kind", [ValueError, IndexError, KeyboardInterrupt])
def test_what_a_part_raises_is_raised(three, whose, kind):
    ended = []

    def part(first, last) -> None:
        if first == 0:
            raise kind("the first part")
        ended.append(first)

    with pytest.raises(kind, match="the first part"):
        threads.shared(part, 30)
    ended.clear()
    threads.shared(lambda first, last: ended.append(first), 30)
    assert sorted(ended) == [0, 10, 20], "the next call is served as ever"


def test_nothing_begins_after_an_error(three, monkeypatch):
    """Where OpenMP gives one thread for three parts."""
    monkeypatch.setattr(threads, "_parallel", lambda: lambda body, *_: body(None))
    begun = []

    def part(first, last) -> None:
        begun.append(first)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        threads.shared(part, 30)
    assert begun == [0]
    begun.clear()
    threads.shared(lambda first, last: begun.append(first), 30)
    assert begun == [0, 10, 20]


def test_an_interrupt_before_the_first_part_is_not_lost(three, monkeypatch):
    """Python sees to signals also where ctypes can but print what is raised: before the body's first line."""
    monkeypatch.setattr(threads, "_parallel", lambda: lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        threads.shared(lambda first, last: None, 30)


@pytest.mark.parametrize("count", [2, 3])
def test_they_are_torchs_own(three, count):
    """The threads that torch's operators have started already, and all of them stay, also when not all have a part."""
    assert threads._parallel() is not None, "torch's wheels for Linux bring GNU's OpenMP"
    found = []

    def ask() -> None:
        torch.rand(1000, 1000).exp_()
        before, meeting = os.listdir("/proc/self/task"), threading.Barrier(count)
        for _ in range(3):
            threads.shared(lambda first, last: meeting.wait(60), count)
            torch.rand(1000, 1000).exp_()
        found.extend([before, os.listdir("/proc/self/task")])

    asker = threading.Thread(target=ask)  # whose team is its own
    asker.start()
    asker.join()
    before, after = found
    assert set(before) == set(after)


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
