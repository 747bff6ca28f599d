"""Who sees which image when: for any number of workers the same, no image twice, any step from nothing."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lead_ray import sampling
from lead_ray.sampling import Sampling

LANES = 8
lane_sizes = st.lists(st.integers(4, 12), min_size=LANES, max_size=LANES).map(tuple)
plans = st.tuples(lane_sizes, st.integers(1, 4).map(lambda n: n * LANES), st.integers(0, 2**31))
first_steps = st.integers(0, 40)


def global_batch(plan: Sampling, step: int, workers: int) -> dict[int, tuple[int, int]]:
    """Place in the batch -> (lane, image within the lane), put together from what each worker draws."""
    batch = {}
    for rank in range(workers):
        lanes = tuple(range(rank, len(plan.lane_sizes), workers))
        held = [(lane, image) for lane in lanes for image in range(plan.lane_sizes[lane])]
        got_step, rows, places = next(plan.batches(step, lanes))
        assert got_step == step
        assert len(rows) == len(places) == plan.batch_size // workers
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            assert place not in batch
            batch[place] = held[row]
    return batch


class TestWorkers:
    @given(plans, first_steps)
    def test_any_number_of_workers_draws_the_same_batch_at_the_same_places(self, numbers, step):
        plan = Sampling(*numbers)
        alone = global_batch(plan, step, 1)
        assert sorted(alone) == list(range(plan.batch_size))
        for workers in (2, 4, 8):
            assert global_batch(plan, step, workers) == alone

    def test_by_hand(self):
        """Two lanes of three images, batches of two: an epoch is three steps of one image from each lane."""
        plan = Sampling((3, 3), 2, seed=0)
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


class TestEpochs:
    @given(plans, st.integers(0, 3))
    def test_no_image_comes_twice(self, numbers, epoch):
        plan = Sampling(*numbers)
        steps = plan.steps_per_epoch
        batches = islice(plan.batches(epoch * steps, tuple(range(LANES))), steps)
        rows = torch.cat([rows for _, rows, _ in batches])
        assert len(rows.unique()) == len(rows) == steps * plan.batch_size
        assert LANES * min(plan.lane_sizes) - len(rows) < plan.batch_size, "one more batch would have fitted"

    def test_every_epoch_and_lane_has_an_order_of_its_own(self):
        plan = Sampling((50,) * 4, 200, seed=0)
        first, second = (rows.view(4, 50) for _, rows, _ in islice(plan.batches(0, (0, 1, 2, 3)), 2))
        orders = [*(first % 50).tolist(), *(second % 50).tolist()]
        assert len({tuple(order) for order in orders}) == 8
        assert all(sorted(order) == list(range(50)) for order in orders)

    def test_seed_decides(self):
        draws = {seed: next(Sampling((50,) * 2, 40, seed).batches(0, (0, 1)))[1].tolist() for seed in (0, 1)}
        again = next(Sampling((50,) * 2, 40, 0).batches(0, (0, 1)))[1].tolist()
        assert draws[0] == again != draws[1]


class TestResume:
    @given(plans, first_steps)
    def test_from_any_step_equals_the_sequence_continued(self, numbers, first):
        plan = Sampling(*numbers)
        lanes = (1, 5)
        continued = islice(plan.batches(0, lanes), first, first + 5)
        resumed = islice(plan.batches(first, lanes), 5)
        for (step, rows, places), (step_, rows_, places_) in zip(continued, resumed, strict=True):
            assert step == step_
            assert torch.equal(rows, rows_) and torch.equal(places, places_)


class TestGenerator:
    def test_streams_of_different_keys_differ(self):
        uses = [(sampling.AUGMENT, step) for step in range(3)]
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
            Sampling((10,) * 8, 12, seed=0)

    def test_batch_larger_than_the_data(self):
        message = r"batch_size=32 takes 4 images of each of 8 lanes, and the smallest holds 3: .* at most 24"
        with pytest.raises(ValueError, match=message):
            Sampling((4,) * 7 + (3,), 32, seed=0)
        assert Sampling((4,) * 7 + (3,), 24, seed=0).steps_per_epoch == 1

    def test_fewer_images_than_lanes(self):
        with pytest.raises(ValueError, match=r"6 images, fewer than the 8 lanes"):
            Sampling((1,) * 6 + (0,) * 2, 8, seed=0)
