"""Who sees which image when: for any number of workers the same, no image twice, any step from nothing."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lead_ray.images import sampling
from lead_ray.images.sampling import Sampling

LANES = 8
ALL = tuple(range(LANES))


@st.composite
def plans(draw, **fixed) -> dict:
    """Arguments of a Sampling: uneven shards, one to three a lane; every order that there is."""
    shards = LANES * draw(st.integers(1, 3))
    options = {"window": st.integers(0, 4), "deal_every": st.integers(0, 3)} | fixed
    return {
        "shard_sizes": tuple(draw(st.lists(st.integers(4, 12), min_size=shards, max_size=shards))),
        "lanes": LANES,
        "batch_size": LANES * draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 2**31)),
        **{name: draw(values) for name, values in options.items()},
    }


streams = plans(window=st.integers(1, 4), deal_every=st.just(1))
first_steps = st.integers(0, 40)
Picture = tuple[int, int]
"""A shard, and an image within it."""


def pictures(plan: Sampling, step: int, lanes: tuple[int, ...], rows: torch.Tensor) -> list[Picture]:
    """Which images the rows of a step are."""
    held = plan.held(step // plan.steps_per_epoch, lanes)
    everything = [(shard, image) for shard in held for image in range(plan.shard_sizes[shard])]
    return [everything[row] for row in rows.tolist()]


def global_batch(plan: Sampling, step: int, workers: int) -> dict[int, Picture]:
    """Place in the batch -> image, put together from what each worker draws."""
    batch = {}
    for rank in range(workers):
        lanes = tuple(range(rank, plan.lanes, workers))
        got_step, rows, places = next(plan.batches(step, lanes))
        assert got_step == step
        assert len(rows) == len(places) == plan.batch_size // workers
        for place, picture in zip(places.tolist(), pictures(plan, step, lanes, rows), strict=True):
            assert place not in batch
            batch[place] = picture
    return batch


class TestWorkers:
    @given(plans(), first_steps)
    def test_any_number_of_workers_draws_the_same_batch_at_the_same_places(self, numbers, step):
        plan = Sampling(**numbers)
        alone = global_batch(plan, step, 1)
        assert sorted(alone) == list(range(plan.batch_size))
        for workers in (2, 4, 8):
            assert global_batch(plan, step, workers) == alone

    def test_by_hand(self):
        """Two lanes of three images, batches of two: an epoch is three steps of one image from each lane."""
        plan = Sampling((3, 3), 2, 2, seed=0)
        assert (plan.per_lane, plan.steps_per_epoch) == (1, 3)
        both = list(islice(plan.batches(0, (0, 1)), 3))
        assert [step for step, *_ in both] == [0, 1, 2]
        rows = torch.stack([rows for _, rows, _ in both])
        assert rows[:, 0].sort().values.tolist() == [0, 1, 2]
        assert rows[:, 1].sort().values.tolist() == [3, 4, 5]
        assert all(places.tolist() == [0, 1] for *_, places in both)
        second = list(islice(plan.batches(0, (1,)), 3))
        assert [rows.item() for _, rows, _ in second] == (rows[:, 1] - 3).tolist()
        assert all(places.tolist() == [1] for *_, places in second)

    def test_the_order_of_earlier_runs(self):
        """Whole lanes, never dealt anew: a run begun by an earlier version goes on with the images that it expects."""
        plan = Sampling((6, 5, 6, 5), 2, 4, seed=7)
        rows = [rows.tolist() for _, rows, _ in islice(plan.batches(4, (0, 1)), 3)]
        assert plan.held(0, (0, 1)) == plan.held(9, (0, 1)) == [0, 2, 1, 3]
        assert rows == [[6, 11, 16, 17], [3, 6, 21, 15], [9, 4, 12, 13]]


class TestEpochs:
    @given(plans(), st.integers(0, 4))
    def test_no_image_comes_twice(self, numbers, epoch):
        plan = Sampling(**numbers)
        steps = plan.steps_per_epoch
        batches = islice(plan.batches(epoch * steps, ALL), steps)
        seen = [picture for step, rows, _ in batches for picture in pictures(plan, step, ALL, rows)]
        assert len(set(seen)) == len(seen) == steps * plan.batch_size
        assert LANES * plan.smallest_lane - len(seen) < plan.batch_size, "one more batch would have fitted"

    @given(plans(), st.integers(0, 4), st.integers(0, LANES - 1))
    def test_an_order_is_of_all_images_of_the_lane(self, numbers, epoch, lane):
        plan = Sampling(**numbers)
        images = sum(plan.shard_sizes[shard] for shard in plan.held(epoch, (lane,)))
        assert sorted(plan.order(epoch, lane).tolist()) == list(range(images))
        assert images >= plan.smallest_lane

    @pytest.mark.parametrize("window", [0, 1])
    def test_every_epoch_and_lane_has_an_order_of_its_own(self, window):
        plan = Sampling((50,) * 4, 4, 200, seed=0, window=window)
        first, second = (rows.view(4, 50) for _, rows, _ in islice(plan.batches(0, (0, 1, 2, 3)), 2))
        orders = [*(first % 50).tolist(), *(second % 50).tolist()]
        assert len({tuple(order) for order in orders}) == 8
        assert all(sorted(order) == list(range(50)) for order in orders)

    @pytest.mark.parametrize("options", [{}, {"window": 2, "deal_every": 1}])
    def test_seed_decides(self, options):
        def draws(seed: int) -> list[int]:
            return next(Sampling((50,) * 4, 2, 40, seed, **options).batches(0, (0, 1)))[1].tolist()

        assert draws(0) == draws(0) != draws(1)


class TestDealing:
    @given(plans(), st.integers(0, 12))
    def test_every_shard_is_in_one_lane(self, numbers, epoch):
        plan = Sampling(**numbers)
        hands = [plan.held(epoch, (lane,)) for lane in ALL]
        assert plan.held(epoch, ALL) == [shard for hand in hands for shard in hand]
        assert sorted(plan.held(epoch, ALL)) == list(range(len(plan.shard_sizes)))
        assert {len(hand) for hand in hands} == {len(plan.shard_sizes) // LANES}

    def test_anew_every_so_many_epochs(self):
        plan = Sampling((4,) * 24, LANES, LANES, seed=0, deal_every=3)
        hands = [plan.held(epoch, ALL) for epoch in range(12)]
        assert all(hands[epoch] == hands[epoch // 3 * 3] for epoch in range(12))
        assert len({tuple(hand) for hand in hands}) == 4
        never = Sampling((4,) * 24, LANES, LANES, seed=0)
        assert never.held(11, (1, 2)) == [1, 9, 17, 2, 10, 18]

    def test_an_epoch_is_as_long_as_the_smallest_lane_that_can_be_dealt(self):
        """Seven shards in three lanes: two or three each."""
        sizes = (5, 9, 4, 9, 9, 9, 9)
        assert Sampling(sizes, 3, 3, 0).smallest_lane == 4 + 9, "lane 2 holds shards 2 and 5"
        assert Sampling(sizes, 3, 3, 0, deal_every=2).smallest_lane == 4 + 5


class TestWindow:
    def test_it_slides_over_the_lane(self):
        """Each image comes at the time of its shard, or up to `window` shards later."""
        plan = Sampling((100,) * 20, 1, 1, seed=0, window=4)
        shard = plan.order(0, 0) // 100
        assert (shard[:150] <= 3).all() and (shard[-150:] >= 16).all()
        for at in range(4, 17):
            around = shard[100 * at : 100 * at + 100]
            assert around.min() >= at - 3 and around.max() <= at + 3
            assert len(around.unique()) >= 4, "mixes the shards in use"

    @given(streams, st.integers(0, 4), st.integers(0, LANES - 1))
    def test_no_more_shards_are_in_use_than_it_is_wide(self, numbers, epoch, lane):
        plan = Sampling(**numbers)
        held = plan.held(epoch, (lane,))
        shard = torch.arange(len(held)).repeat_interleave(torch.tensor([plan.shard_sizes[number] for number in held]))
        order = shard[plan.order(epoch, lane)].tolist()
        for at in range(len(order)):
            assert len(set(order[: at + 1]) & set(order[at:])) <= plan.window


class TestReads:
    @given(streams, first_steps, st.sampled_from([1, 2, 8]))
    def test_what_is_read_is_what_is_drawn_and_is_there_in_time(self, numbers, first, workers):
        plan = Sampling(**numbers)
        lanes = tuple(range(workers - 1, LANES, workers))
        reads, there = plan.reads(first, lanes), {}
        read = next(reads)
        for step, rows, _ in islice(plan.batches(first, lanes), 2 * plan.steps_per_epoch):
            if step % plan.steps_per_epoch == 0:
                assert not there, "nothing is left of an epoch"
            while read.step <= step:
                assert read.step == step, "not before it is drawn from"
                assert not there.keys() & set(read.rows)
                there |= {row: (read.shard, row - read.start) for row in read.rows}
                read = next(reads)
            assert [there.pop(row) for row in rows.tolist()] == pictures(plan, step, lanes, rows)

    def test_by_hand(self):
        """A window of one: shard after shard; of each lane's five images an epoch draws four."""
        plan = Sampling((3, 3, 2, 2), 2, 4, seed=0, window=1)
        reads = list(islice(plan.reads(1, (0, 1)), 6))
        assert [(read.step, read.shard, len(read.rows)) for read in reads[:4]] == [
            (1, 0, 1),
            (1, 1, 1),
            (1, 2, 1),
            (1, 3, 1),
        ]
        assert [(read.step, read.shard, len(read.rows), read.start) for read in reads[4:]] == [
            (2, 0, 3, 0),
            (2, 1, 3, 5),
        ]


class TestResume:
    @given(plans(), first_steps)
    def test_from_any_step_equals_the_sequence_continued(self, numbers, first):
        plan = Sampling(**numbers)
        lanes = (1, 5)
        continued = islice(plan.batches(0, lanes), first, first + 5)
        resumed = islice(plan.batches(first, lanes), 5)
        for (step, rows, places), (step_, rows_, places_) in zip(continued, resumed, strict=True):
            assert step == step_
            assert torch.equal(rows, rows_) and torch.equal(places, places_)


class TestGenerator:
    def test_streams_of_different_keys_differ(self):
        uses = [(use, number) for use in (sampling.AUGMENT, sampling.DEAL) for number in range(3)]
        uses += [(sampling.SHUFFLE, epoch, lane) for epoch in range(3) for lane in range(3)]
        keys = [(seed, *use) for seed in range(2) for use in [*uses, (sampling.WEIGHTS,)]]
        streams = {tuple(torch.rand(3, generator=sampling.generator(*key)).tolist()) for key in keys}
        assert len(streams) == len(keys)

    def test_global_state_plays_no_part(self):
        torch.manual_seed(0)
        first = torch.rand(3, generator=sampling.generator(7, 1))
        torch.manual_seed(1)
        assert torch.equal(first, torch.rand(3, generator=sampling.generator(7, 1)))


class TestErrors:
    def test_batch_that_lanes_cannot_share(self):
        with pytest.raises(ValueError, match=r"optim.batch_size must be a multiple of the 8 lanes, got 12"):
            Sampling((10,) * 8, 8, 12, seed=0)

    def test_batch_larger_than_the_data(self):
        message = r"batch_size=32 takes 4 images of each of 8 lanes, and the smallest holds 3: .* at most 24"
        with pytest.raises(ValueError, match=message):
            Sampling((4,) * 7 + (3,), 8, 32, seed=0)
        assert Sampling((4,) * 7 + (3,), 8, 24, seed=0).steps_per_epoch == 1

    def test_fewer_images_than_lanes(self):
        with pytest.raises(ValueError, match=r"6 images, fewer than the 8 lanes"):
            Sampling((1,) * 6 + (0,) * 2, 8, 8, seed=0)
