"""Two processes that share a batch through gloo, against one that has it whole."""

import pytest
import torch
import two_processes

from lead_ray.models.batchnorm import synchronise


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """What each of two workers found; this process is the first."""
    folder = tmp_path_factory.mktemp("workers")
    second = torch.multiprocessing.get_context("spawn").Process(target=two_processes.work, args=(1, folder))
    second.start()
    two_processes.work(0, folder)
    second.join()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_batchnorm_equals_that_of_the_whole_batch(workers):
    whole = two_processes.passes(two_processes.network(), two_processes.batch())
    for name, expected in whole.items():
        first, second = (worker["passes"][name] for worker in workers)
        if name == "output":
            found = torch.cat([first, second])
        elif name == "gradient of images":  # a worker's loss is the mean of its half, the whole batch's of both
            found = torch.cat([first, second]) / 2
        else:
            found = (first + second) / 2  # as DistributedDataParallel does
            if not name.startswith("gradient"):
                assert torch.equal(first, second), f"workers disagree on {name}"
        torch.testing.assert_close(
            found,
            expected.to(found.dtype),
            rtol=1e-4,
            atol=1e-5,
            msg=lambda said, name=name: f"{name}: {said}",
        )


def test_alone_it_is_batchnorm():
    plain, sync = (
        two_processes.passes(network, two_processes.batch())
        for network in (two_processes.network(), synchronise(two_processes.network()))
    )
    assert all(torch.equal(plain[name], sync[name]) for name in plain)


def test_metrics_are_means_over_the_workers(workers):
    for worker in workers:
        assert worker["reports"] == [pytest.approx((1.5, 3.0)), pytest.approx((2.0, 4.0))]


def test_a_loss_that_is_not_finite_stops_all_workers_at_its_step(workers):
    for worker in workers:
        first, error = worker["broken"]
        assert first == pytest.approx((1.0, 2.0))
        assert "loss is not finite at step 2 " in error


def test_workers_go_on_from_the_same_step_or_not_at_all(workers):
    for worker in workers:
        same, other = worker["agreement"]
        assert same == "" and "would go on from different steps, [4, 2]: let all machines share" in other
