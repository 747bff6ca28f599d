"""Ray Train with a number of workers that changes, of which only as many start as share a step evenly.

Where there is room for three, Ray's own policy starts three, and no option of Ray's says otherwise: hence these two
classes, which hold to the one release of Ray that is pinned. A worker that meets another number refuses.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from lead_ray.worker import Crew


class EvenPolicy(ElasticScalingPolicy):
    """Ray's, rounded down to a number that divides the most."""

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        crew = Crew(self.scaling_config.min_workers, self.scaling_config.max_workers)
        return crew.fitting(super()._count_possible_workers(reserved_resources))


class EvenTrainer(TorchTrainer):
    """Ray's, with that policy."""

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        return super()._initialize_and_run_controller(**options | {"scaling_policy": EvenPolicy(self.scaling_config)})
