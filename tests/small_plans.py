"""Tasks of which nothing is ever done, for tests of plans."""

from pathlib import Path

from lead_ray.dense import Dense
from lead_ray.evaluate import Evaluate
from lead_ray.pretrain import Pretrain


def pretrain(plan, **changes):
    return plan.Train(Pretrain(**{"data": Path("faces"), "name": "a"} | changes))


def dense(plan, start, **changes):
    return plan.Train(Dense(**{"data": Path("faces"), "name": "b", "stage1": plan.LATER} | changes), start)


def matching(plan, encoder, **changes):
    return plan.Measure(Evaluate(**{"run": plan.LATER, "task": "matching", "data": Path("mafl")} | changes), encoder)
