"""How images reach a step: those that `sampling` names, from any step on, with no more in memory than promised."""

import threading
import weakref
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch

from lead_ray.images import feed, shards
from lead_ray.images.feed import Source
from lead_ray.images.sampling import Sampling

CPU = torch.device("cpu")
LANES = (1, 4, 6)
STEPS = 9


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    """Forty images of 40 x 40 pixels in 24 shards of one or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS_PER_SHARD", 2)
        folder = layouts.prepared_pictures(tmp_path_factory.mktemp("data"))
    return Source.open(folder, "train")


@pytest.fixture(scope="module")
def pictures(source) -> list[torch.Tensor]:
    """The images of each shard, read by other means."""
    images = shards.load(source.folder, "train").pixels
    return list(images.split([shard.rows for shard in source.shards]))


def plan(source: Source, **options) -> Sampling:
    """Epochs of three steps if shards are dealt anew, of five if not."""
    return Sampling(tuple(shard.rows for shard in source.shards), 8, 8, seed=0, **options)


def resident(source: Source, decode=feed.in_threads, **options) -> feed.Images:
    return feed.resident(plan(source, **options), LANES, source, decode, CPU)


def stream(source: Source, decode=feed.in_threads) -> feed.Images:
    return feed.stream(plan(source, window=2, deal_every=1), LANES, source, decode, CPU, steps=STEPS)


def expected(order: Sampling, pictures: list[torch.Tensor], step: int) -> torch.Tensor:
    _, rows, _ = next(order.batches(step, LANES))
    return torch.cat([pictures[shard] for shard in order.held(step // order.steps_per_epoch, LANES)])[rows]


class Watched:
    """A Decode that counts what it was asked for and what of it is still in memory."""

    def __init__(self):
        self.given, self.alive, self.most = [], 0, 0

    def __call__(self, source: Source, wanted: Iterable[int], ahead: int) -> Iterator[np.ndarray]:
        for number in wanted:
            pixels = np.full((source.shards[number].rows, 40, 40, 3), number, np.uint8)
            weakref.finalize(pixels, self._gone)
            self.given.append(number)
            self.alive += 1
            self.most = max(self.most, self.alive)
            yield pixels
            del pixels

    def _gone(self) -> None:
        self.alive -= 1


class TestBoth:
    @pytest.mark.parametrize("first", [0, 2, 4, 6])
    def test_each_step_has_the_images_that_sampling_names(self, source, pictures, first):
        """Within an epoch, at its ends, across the next."""
        cases = [
            (resident(source), plan(source)),
            (resident(source, deal_every=2), plan(source, deal_every=2)),
            (stream(source), plan(source, window=2, deal_every=1)),
        ]
        for images, order in cases:
            found = list(islice(images(first), STEPS - first))
            assert [step for step, *_ in found] == list(range(first, STEPS))
            for step, batch, places in found:
                assert torch.equal(batch, expected(order, pictures, step))
                assert batch.is_contiguous(memory_format=torch.channels_last)
                assert places.tolist() == list(LANES)

    def test_a_damaged_file_ends_both(self, source):
        def broken(source: Source, wanted: Iterable[int], ahead: int) -> Iterator[np.ndarray]:
            yield from islice(feed.in_threads(source, wanted, ahead), 7)
            raise ValueError("part-7 is damaged")

        for make in (resident, stream):
            with pytest.raises(ValueError, match="part-7 is damaged"):
                list(islice(make(source, broken)(0), STEPS))


class TestResident:
    def test_shards_are_read_once_until_they_are_dealt_anew(self, source):
        for options, times in (({}, 1), ({"deal_every": 2}, 2)):
            watched = Watched()
            list(islice(resident(source, watched, **options)(1), STEPS - 1))
            assert len(watched.given) == times * len(LANES) * 3

    def test_no_more_room_than_the_images(self, source):
        """What was decoded is copied and goes; what was held goes before the next is read."""
        watched = Watched()
        list(islice(resident(source, watched, deal_every=1)(0), STEPS))
        assert watched.most <= 2


class TestStream:
    def test_it_ends_with_the_run(self, source):
        assert len(list(stream(source)(0))) == STEPS
        assert list(stream(source)(STEPS)) == []

    @pytest.mark.parametrize("first", [0, 4])
    def test_no_more_in_memory_than_the_window(self, source, first):
        """Two shards a lane, and one a lane that comes while another is about to go."""
        watched = Watched()
        list(stream(source, watched)(first))
        assert len(LANES) < watched.most <= 3 * len(LANES)
        assert watched.alive == 0

    def test_only_what_is_drawn_is_read(self, source):
        """One image of each lane in the last step; in all three epochs two or three shards of each lane."""
        for first, least, most in ((STEPS - 1, 1, 1), (0, 6, 9)):
            watched = Watched()
            list(stream(source, watched)(first))
            assert least * len(LANES) <= len(watched.given) <= most * len(LANES)


class TestThreads:
    def test_shards_come_in_the_order_asked_for(self, source, pictures):
        wanted = [5, 3, 3, 17, 0, *range(24)]
        found = list(feed.in_threads(source, wanted, 4))
        for number, pixels in zip(wanted, found, strict=True):
            assert pixels.flags.writeable
            assert torch.equal(torch.from_numpy(pixels).permute(0, 3, 1, 2), pictures[number])

    def test_reading_ahead_is_bounded(self, source, monkeypatch):
        asked = []

        def wanted() -> Iterator[int]:
            for number in count():
                asked.append(number)
                yield number % 24

        found = feed.in_threads(source, wanted(), 4)
        for taken in range(1, 30):
            next(found)
            assert len(asked) <= taken + 4
        found.close()
        assert len(asked) <= 29 + 4

    def test_background_keeps_order_and_hands_errors_over(self):
        def numbers() -> Iterator[int]:
            yield from range(5)
            raise ValueError("six")

        found = feed.in_background(numbers(), depth=2)
        assert list(islice(found, 5)) == list(range(5))
        with pytest.raises(ValueError, match="six"):
            next(found)
        assert list(feed.in_background(iter(()), depth=2)) == []

    def test_background_is_depth_ahead_and_ends_with_its_reader(self):
        made, closed = [], threading.Event()

        def numbers() -> Iterator[int]:
            try:
                for number in count():
                    made.append(number)
                    yield number
            finally:
                closed.set()

        found = feed.in_background(numbers(), depth=3)
        assert made, "the first is there"
        assert next(found) == 0
        found.close()
        assert len(made) <= 4
        del found
        assert closed.wait(60)


class TestWaits:
    def test_share_of_the_time_since_the_last_call(self, monkeypatch):
        now = iter([0.0, 10.0, 13.0, 20.0, 21.0, 40.0, 60.0])  # made, two waits of 3 s and 1 s, asked, asked again
        monkeypatch.setattr(feed.time, "perf_counter", lambda: next(now))
        waits = feed.Waits(iter("ab"))
        assert (next(waits), next(waits)) == ("a", "b")
        assert waits.share() == pytest.approx(4 / 40)
        assert waits.share() == 0


class TestRoom:
    def test_a_share_of_what_is_free_for_each_worker(self, monkeypatch):
        monkeypatch.setattr(feed, "free_memory", lambda device: 10e9)
        feed.check_room(8.0, CPU, 1)
        feed.check_room(4.0, CPU, 2)
        feed.check_room(8.0, torch.device("cuda"), 2)
        with pytest.raises(ValueError, match=r"keeps 4.1 GB of images in the cpu .* 5 GB free \(80% .*--ingest stream"):
            feed.check_room(4.1, CPU, 2)

    def test_this_machine_tells(self):
        assert 1e6 < feed.free_memory(CPU) < 1e15

    def test_a_container_counts(self, monkeypatch):
        text = {
            "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8000000 kB\n",
            "/sys/fs/cgroup/memory.max": "5000000000\n",
            "/sys/fs/cgroup/memory.current": "3000000000\n",
            "/sys/fs/cgroup/memory.stat": "anon 2000000000\ninactive_file 1000000000\n",
        }
        monkeypatch.setattr(Path, "read_text", lambda path: text[str(path)])
        assert feed.free_memory(CPU) == 3e9
        text["/sys/fs/cgroup/memory.max"] = "max\n"
        assert feed.free_memory(CPU) == 8000000 * 1024

    def test_a_machine_that_does_not_tell(self, monkeypatch):
        def missing(path):
            raise FileNotFoundError(path)

        monkeypatch.setattr(Path, "read_text", missing)
        assert feed.free_memory(CPU) == float("inf")


def test_gigabytes(source):
    assert source.gigabytes() == pytest.approx(40 * 3 * 40 * 40 / 1e9)
    assert source.gigabytes([0]) == pytest.approx(source.shards[0].rows * 3 * 40 * 40 / 1e9)
