"""What trials ask a cluster for, where they land, and what becomes of them when a node is lost."""

import json
import sys
import threading
import time
from dataclasses import replace

import pytest
from small_plans import matching, pretrain

from lead_ray.resources import worker_resources
from lead_ray.worker import Crew

LONG = 240.0  # seconds; nothing waits so long but a test that fails


@pytest.fixture
def place(sweep, tmp_path):
    return sweep.conduct.Place(workers=1, device="auto", readout_gpus=0.25, logs=tmp_path / "logs" / "study")


def test_readouts_ask_for_a_share_of_a_gpu_and_trainings_for_whole_ones(sweep, place):
    needs, cluster = sweep.conduct.needs, {"CPU": 8.0, "GPU": 2.0}
    assert needs("measure", place, cluster)["GPU"] == 0.25
    for kind in ("stage1", "stage2"):
        assert "GPU" not in needs(kind, place, cluster), "the trial only waits for its workers, which ask"
    assert worker_resources(cluster, Crew.of(1), True)["GPU"] == 1.0
    for device, has in (("cpu", cluster), ("auto", {"CPU": 8.0})):
        assert "GPU" not in needs("measure", replace(place, device=device), has)


def test_as_many_trainings_as_there_are_gpus_for(sweep, place):
    room, cluster = sweep.conduct.room, {"CPU": 64.0, "GPU": 8.0}
    assert [room(replace(place, workers=workers), cluster) for workers in (1, 4, 8)] == [8, 2, 1]
    assert room(place, {"CPU": 64.0}) == room(replace(place, device="cpu"), cluster) == 1
    assert room(replace(place, at_once=3), cluster) == 3


@pytest.fixture
def fakes(sweep, monkeypatch):
    """Tasks that are never done before they were tried, and what stands in for trying them on the cluster."""

    class Training(sweep.plan.Train):
        def done(self):
            return False

        def job(self, notes):
            return sweep.trial.Job(self.key, self.title, self.stage, notes / self.key, notes)

    class Reading(sweep.plan.Measure):
        needs = ()

        def done(self):
            return False

        def job(self, notes):
            return sweep.trial.Job(self.key, self.title, self.settings, notes / self.key, notes)

    def tried(attempt, tasks, place, notes):
        """Carry them out with that in place of attempt(); return the agenda."""
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not find this file
        monkeypatch.setattr(sweep.conduct, "attempt", attempt)
        agenda = sweep.agenda.Agenda(tasks, notes=notes)
        sweep.conduct.on_ray(agenda, place, lambda: None, [])
        return agenda

    return Training, Reading, tried


def wait_until(ready) -> bool:
    """Whether it came to be in time."""
    end = time.monotonic() + LONG
    while not ready() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(ready())


def start(**offers):
    """A local Ray that offers these; three times over, for on a machine that others keep busy one may fail to start."""
    import ray

    for attempt in range(3):
        try:
            return ray.init(address="local", log_to_driver=False, logging_level="ERROR", **offers)
        except Exception as error:
            if type(error) is not Exception or attempt == 2:  # which is what Ray raises then
                raise
            ray.shutdown()


def stand_side_by_side(job, report):
    """Say which GPU Ray gave, and hold it until three have one: a training's worker and two read-outs."""
    import ray

    def hold():
        gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        (job.notes / f"{job.key}.json").write_text(json.dumps({"kind": job.kind, "gpus": gpus}))
        return wait_until(lambda: len([*job.notes.glob("*.json")]) == 3)

    if job.kind == "measure":
        together = hold()
    else:
        asked = worker_resources(ray.cluster_resources(), Crew.of(1), True)
        # Beside the trial's own place, as Ray Train asks for its workers.
        options = {"num_gpus": asked["GPU"], "num_cpus": asked["CPU"], "scheduling_strategy": "DEFAULT"}
        together = ray.get(ray.remote(**options)(hold).remote())
    return None if together else "the others did not come"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_readouts_share_a_gpu_while_a_training_holds_the_other(sweep, place, fakes, tmp_path, quiet_ray):
    """On GPUs that are declared, not there: Ray places by what is declared."""
    training, reading, tried = fakes
    start(num_cpus=6, num_gpus=2)
    notes = tmp_path / "notes"
    notes.mkdir()
    measures = [matching(sweep.plan, pretrain(sweep.plan, seed=seed), seeds=(seed,)) for seed in (1, 2)]
    tasks = [training(pretrain(sweep.plan).stage), *(reading(each.settings, each.encoder) for each in measures)]
    agenda = tried(stand_side_by_side, tasks, place, notes)
    assert not agenda.reasons
    found = [json.loads(path.read_text()) for path in notes.glob("*.json")]
    held = {kind: [each["gpus"] for each in found if each["kind"] == kind] for kind in ("stage1", "measure")}
    ((whole,),), (one, other) = held["stage1"], held["measure"]
    assert one == other and len(one) == 1 and whole not in one


def stay_until_lost(job, report):
    """The first time for ever, on a node that is taken away; then at once."""
    import ray

    with (job.notes / "nodes.txt").open("a") as lines:
        lines.write(f"{ray.get_runtime_context().get_node_id()}\n")
    first = len((job.notes / "nodes.txt").read_text().splitlines()) == 1
    return "the node was never lost" if first and not wait_until(lambda: False) else None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_trial_whose_node_is_lost_is_tried_again_on_another(sweep, place, fakes, tmp_path, quiet_ray):
    """What a trial that is tried again makes of its run, test_studies.py tells."""
    import ray
    from ray.cluster_utils import Cluster

    training, _, tried = fakes
    notes = tmp_path / "notes"
    notes.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

        def lose():
            record = notes / "nodes.txt"
            if wait_until(lambda: record.exists() and record.read_text().endswith("\n")):
                (lost,) = (node for node in nodes if node.node_id == record.read_text().strip())
                cluster.remove_node(lost, allow_graceful=False)

        loser = threading.Thread(target=lose, daemon=True)
        loser.start()
        agenda = tried(stay_until_lost, [training(pretrain(sweep.plan).stage)], place, notes)
        loser.join()
        assert not agenda.reasons and agenda.over
        first, second = (notes / "nodes.txt").read_text().split()
        assert first != second and {first, second} <= {node.node_id for node in nodes}
    finally:
        ray.shutdown()
        cluster.shutdown()
