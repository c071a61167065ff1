"""What chooses the settings of the next trial: conf/sweep/sampler. Each function makes one of Optuna's samplers, with a seed of its own."""

import itertools
import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler

from sae_lightning.errors import InputError
from sae_lightning.sweeps.space import Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState


def tpe(space: Space, seed: int, n_startup_trials: int = 10) -> BaseSampler:
    """Tree-structured Parzen estimator, multivariate; trials at work elsewhere count as bad ones, so that they are not drawn again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=n_startup_trials, multivariate=True, constant_liar=True, warn_independent_sampling=False, seed=seed
        )


def random(space: Space, seed: int) -> BaseSampler:
    """Independent draws."""
    return optuna.samplers.RandomSampler(seed)


def cmaes(space: Space, seed: int, n_startup_trials: int = 1) -> BaseSampler:
    """Covariance matrix adaptation; choices are drawn at random beside it."""
    return optuna.samplers.CmaEsSampler(n_startup_trials=n_startup_trials, warn_independent_sampling=False, seed=seed)


def gp(space: Space, seed: int, n_startup_trials: int = 10) -> BaseSampler:
    """Gaussian process, of BoTorch, for one objective or several. Errors: InputError where BoTorch is not installed."""
    try:
        from sae_lightning.sweeps.gaussian_process import GaussianProcess
    except ModuleNotFoundError as error:
        raise InputError(f"sweep/sampler=gp needs {error.name}: pip install 'sae_lightning[botorch]'") from error
    return GaussianProcess(space, seed, n_startup_trials)


def nsgaii(space: Space, seed: int, population: int = 20) -> BaseSampler:
    """A genetic algorithm, for several objectives."""
    return optuna.samplers.NSGAIISampler(population_size=population, seed=seed)


def grid(space: Space, seed: int) -> BaseSampler:
    """Every combination once, in a random order that is one for all seeds. Errors: InputError for an interval."""
    return Grid(space)


def combinations(space: Space) -> int:
    """How many a grid has. Errors: InputError for an interval."""
    return math.prod(len(dimension.values()) for dimension in space.values())


class Grid(BaseSampler):
    """The combination whose number is the trial's: Optuna's own draws one that is free, and two sweepers may draw the same."""

    def __init__(self, space: Space):
        values = [[(name, value) for value in dimension.values()] for name, dimension in space.items()]
        self._combinations = [dict(one) for one in itertools.product(*values)]
        self._order = np.random.default_rng(0).permutation(len(self._combinations))

    def infer_relative_search_space(self, study: "Study", trial: "FrozenTrial") -> dict[str, "BaseDistribution"]:
        return {}

    def sample_relative(self, study: "Study", trial: "FrozenTrial", search_space: dict[str, "BaseDistribution"]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: "Study", trial: "FrozenTrial", param_name: str, param_distribution: "BaseDistribution") -> Any:
        return self._combinations[self._order[trial.number % len(self._order)]][param_name]


class ForEachTrial(BaseSampler):
    """A sampler that is made anew for each trial, and for each parameter that is drawn alone, seeded by their number and name.

    A search that was killed therefore goes on as if it had not been. `make`: one of the functions above.
    """

    def __init__(self, make: Callable[..., BaseSampler], space: Space, seed: int):
        self._make, self._space, self._seed = make, space, seed

    def _of(self, trial: "FrozenTrial", name: str = "") -> BaseSampler:
        return self._make(self._space, seed=zlib.crc32(f"{self._seed} {trial.number} {name}".encode()))

    def infer_relative_search_space(self, study: "Study", trial: "FrozenTrial") -> dict[str, "BaseDistribution"]:
        if set(self._space) <= set(trial.params):  # drawn before: a trial that is gone on with
            return {}
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study: "Study", trial: "FrozenTrial", search_space: dict[str, "BaseDistribution"]) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(self, study: "Study", trial: "FrozenTrial", param_name: str, param_distribution: "BaseDistribution") -> Any:
        return self._of(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: "Study", trial: "FrozenTrial", state: "TrialState", values: Sequence[float] | None) -> None:
        self._of(trial).after_trial(study, trial, state, values)
