"""A search by Optuna: which settings are best on images that no test sees.

Trials are kept in a journal, a file that optuna-dashboard opens while the search runs and after. A trial trains at
rising budgets of steps, each a run of its own with its schedule to the end; whoever is not among the best third at one
budget does not reach the next (asynchronous successive halving). What a trial is to try depends on its number and on
the trials that ended before it: a search that was interrupted goes on with the trials that it was at.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from lead_ray import storage
from lead_ray.artefacts import digest
from sweep.agenda import Agenda
from sweep.plan import Measure, Task, closure

KEPT = 3  # one in so many reaches the next budget

Build = Callable[[dict[str, Any], int], Sequence[Measure]]
"""Parameters and steps -> what is measured of the run that they give; on validation images."""
Score = Callable[[Sequence[Measure]], Sequence[float]]
"""What was measured -> one number for each objective; less is better."""


@dataclass
class Active:
    """A trial that is under way."""

    trial: Trial
    rung: int
    measures: Sequence[Measure]


class Search:
    """Thinks of trials as there is room for them; see Agenda's source."""

    def __init__(
        self,
        name: str,
        space: dict[str, BaseDistribution],
        build: Build,
        score: Score,
        *,
        folder: Path,
        trials: int,
        rungs: Sequence[int],
        objectives: Sequence[str],
        seed: int = 0,
    ):
        if storage.is_remote(folder):
            raise ValueError(f"out={storage.uri(folder)}: a search keeps its journal in a local or shared folder")
        if len(objectives) > 1 and len(rungs) > 1:
            raise ValueError(f"rungs must be one with several objectives, got {list(rungs)}: nothing says who is best")
        self.space, self.build, self.score, self.rungs = space, build, score, tuple(rungs)
        self.trials, self.seed = trials, seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self.journal = folder / f"{name}.journal"
        same = {"space": {key: str(value) for key, value in space.items()}, "rungs": self.rungs, "seed": seed}
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.journal))),
            study_name=f"{name}-{digest(json.loads(json.dumps(same)))}",
            directions=["minimize"] * len(objectives),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=self.rungs[0], reduction_factor=KEPT),
            load_if_exists=True,
        )
        with warnings.catch_warnings():  # that it is experimental; it names the axes of optuna-dashboard
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names(list(objectives))
        self.active: list[Active] = []
        for left in self.study.get_trials(states=(TrialState.RUNNING,)):  # when the process ended
            self._begin(Trial(self.study, left._trial_id))

    @property
    def over(self) -> bool:
        return not self.active and len(self.study.get_trials(deepcopy=False)) >= self.trials

    def more(self, agenda: Agenda, room: int) -> list[Task]:
        """The next budget of trials that go on, or one more trial; at most `room` trainings' worth and one."""
        for active in list(self.active):
            self._look(active, agenda)
        asked = len(self.study.get_trials(deepcopy=False))
        if len(self.active) <= room and asked < self.trials:
            startup = max(2, self.trials // 4)
            self.study.sampler = optuna.samplers.TPESampler(seed=1000 * self.seed + asked, n_startup_trials=startup)
            self._begin(self.study.ask(self.space))
        return [measure for active in self.active for measure in active.measures]

    def left(self) -> tuple[int, list[Task]]:
        """How many trials are still to be asked for, and what one that reaches every budget trains and measures."""
        middle = {name: _middle(distribution) for name, distribution in self.space.items()}
        tasks = [measure for steps in self.rungs for measure in self.build(middle, steps)]
        return max(0, self.trials - len(self.study.get_trials(deepcopy=False))), list(closure(tasks).values())

    def _begin(self, trial: Trial) -> None:
        self.active.append(Active(trial, 0, self.build(trial.params, self.rungs[0])))

    def _look(self, active: Active, agenda: Agenda) -> None:
        """Tell Optuna what came of a trial's budget, once all is measured."""
        states = [agenda.states.get(measure.key) for measure in active.measures]
        if "failed" in states:
            self._end(active, state=TrialState.FAIL)
        elif all(state == "done" for state in states):
            values = list(self.score(active.measures))
            steps = self.rungs[active.rung]
            if active.rung == len(self.rungs) - 1:
                self._end(active, values=values)
                return
            if steps not in self.study.get_trials(deepcopy=False)[active.trial.number].intermediate_values:
                active.trial.report(values[0], steps)
            if active.trial.should_prune():
                self._end(active, state=TrialState.PRUNED)
            else:
                active.rung += 1
                active.measures = self.build(active.trial.params, self.rungs[active.rung])

    def _end(self, active: Active, **how: Any) -> None:
        self.active.remove(active)
        self.study.tell(active.trial.number, **how)

    def best(self) -> list[FrozenTrial]:
        """The best trial on validation images, or those of the Pareto front, by their first objective."""
        return sorted(self.study.best_trials, key=lambda trial: trial.values) if self.finished() else []

    def finished(self) -> list[FrozenTrial]:
        """Trials that reached the largest budget."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    @staticmethod
    def words(trial: FrozenTrial) -> str:
        """What a trial tried."""
        values = trial.params.items()
        return ", ".join(
            f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in values
        )

    def said(self) -> str:
        """One line for the screen."""
        trials = self.study.get_trials(deepcopy=False)
        counts = {state: sum(trial.state == state for trial in trials) for state in TrialState}
        ended = ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items() if count)
        said = f"trials: {ended or 'none yet'}"
        for trial in self.best()[:1]:
            said += f"; best {' / '.join(f'{value:.2f}' for value in trial.values)} by {self.words(trial)}"
        return said


def _middle(distribution: BaseDistribution) -> Any:
    """Some value that a search may try."""
    return distribution.choices[0] if isinstance(distribution, CategoricalDistribution) else distribution.low
