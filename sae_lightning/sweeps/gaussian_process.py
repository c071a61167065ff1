"""Bayesian search with a Gaussian process: BoTorch's models and acquisition functions as a sampler of Optuna.

Optuna 2 has one of its own, which asks for functions that BoTorch has no more.
"""

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sae_lightning.sweeps.space import Choice, Dimension, Space, Value

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # gpytorch compiles two functions with TorchScript
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.acquisition.multi_objective.parego import qLogNParEGO
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.models.kernels import CategoricalKernel
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
    from botorch.optim.optimize_mixed import optimize_acqf_mixed_alternating
    from botorch.utils.sampling import manual_seed
    from gpytorch.kernels import Kernel
    from gpytorch.mlls import ExactMarginalLogLikelihood

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

RESTARTS, RAW_SAMPLES = 8, 256


class GaussianProcess(BaseSampler):
    """The point of the greatest expected improvement; for several objectives, of a weighting of them that each trial draws (ParEGO).

    The model knows the trials that are complete; trials at work are points about to be known. Trials that were given up tell it nothing:
    their values are those of another length. Before `n_startup_trials` are complete, points are drawn at random.
    """

    def __init__(self, space: Space, seed: int, n_startup_trials: int):
        self._space, self._seed, self._n_startup_trials = space, seed, n_startup_trials
        self._random = RandomSampler(seed)

    def infer_relative_search_space(self, study: "Study", trial: "FrozenTrial") -> dict[str, "BaseDistribution"]:
        known = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return {name: one.distribution() for name, one in self._space.items()} if len(known) >= self._n_startup_trials else {}

    def sample_relative(self, study: "Study", trial: "FrozenTrial", search_space: dict[str, "BaseDistribution"]) -> dict[str, Any]:
        if not search_space:
            return {}
        known = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        pending = [one for one in running if one.number != trial.number and set(self._space) <= set(one.params)]
        signs = torch.tensor([1.0 if one == StudyDirection.MAXIMIZE else -1.0 for one in study.directions], dtype=torch.float64)
        values = torch.tensor([one.values for one in known], dtype=torch.float64) * signs
        with manual_seed(self._seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numerical care that BoTorch took
            point = best_point(self._space, self._points(known), values, self._points(pending))
        return {name: value_at(one, float(x)) for (name, one), x in zip(self._space.items(), point, strict=True)}

    def sample_independent(self, study: "Study", trial: "FrozenTrial", param_name: str, param_distribution: "BaseDistribution") -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _points(self, trials: "Sequence[FrozenTrial]") -> torch.Tensor:
        rows = [[position(one, trial.params[name]) for name, one in self._space.items()] for trial in trials]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(trials), len(self._space))


def best_point(space: Space, points: torch.Tensor, values: torch.Tensor, pending: torch.Tensor) -> torch.Tensor:
    """Where to look next, [D] positions. `points` [N, D], `values` [N, M] to be made great, `pending` [P, D]."""
    texts = {i: list(range(len(one.words))) for i, one in enumerate(space.values()) if isinstance(one, Choice) and _is_text(one)}
    has_steps = {i for i, one in enumerate(space.values()) if i not in texts and (isinstance(one, Choice) or one.step is not None)}
    steps = {i: sorted(position(one, value) for value in one.values()) for i, one in enumerate(space.values()) if i in has_steps}
    highest = [float(texts[i][-1]) if i in texts else 1.0 for i in range(len(space))]
    bounds = torch.tensor([[0.0] * len(space), highest], dtype=torch.float64)
    numbers = [i for i in range(len(space)) if i not in texts]
    models = [_fitted(SingleTaskGP(points, of_one, covar_module=_kernel(numbers, list(texts)))) for of_one in values.split(1, dim=1)]
    known = {"X_baseline": points, "X_pending": pending if len(pending) else None}
    acquisition = qLogNoisyExpectedImprovement(models[0], **known) if len(models) == 1 else qLogNParEGO(ModelListGP(*models), **known)
    found, _ = optimize_acqf_mixed_alternating(
        acquisition, bounds, discrete_dims=steps, cat_dims=texts, raw_samples=RAW_SAMPLES, num_restarts=RESTARTS
    )
    return found[0]


def _fitted(model: SingleTaskGP) -> SingleTaskGP:
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def _kernel(numbers: list[int], texts: list[int]) -> Kernel:
    """Over columns that are numbers, times one over those that are texts."""
    parts: list[Kernel] = []
    if numbers:
        parts.append(get_covar_module_with_dim_scaled_prior(ard_num_dims=len(numbers), active_dims=numbers))
    if texts:
        parts.append(CategoricalKernel(ard_num_dims=len(texts), active_dims=tuple(texts)))
    return math.prod(parts[1:], start=parts[0])


def position(dimension: Dimension, value: Value) -> float:
    """Where a value lies, from 0 to 1; in a choice among texts, its index."""
    if isinstance(dimension, Choice):
        if _is_text(dimension):
            return float(dimension.values().index(value))
        return _in_order(dimension).index(value) / (len(dimension.words) - 1)
    assert isinstance(value, int | float)
    low, high = dimension.low, dimension.high
    return math.log(value / low) / math.log(high / low) if dimension.is_log else (value - low) / (high - low)


def value_at(dimension: Dimension, x: float) -> Value:
    """The value whose position is nearest to x."""
    if isinstance(dimension, Choice):
        return dimension.values()[round(x)] if _is_text(dimension) else _in_order(dimension)[round(x * (len(dimension.words) - 1))]
    low, high = dimension.low, dimension.high
    value = low * (high / low) ** x if dimension.is_log else low + x * (high - low)
    if dimension.step is not None:
        value = low + dimension.step * round((value - low) / dimension.step)
    value = min(max(value, low), high)
    return round(value) if dimension.is_integer else value


def _is_text(choice: Choice) -> bool:
    return not all(isinstance(value, int | float) and not isinstance(value, bool) for value in choice.words)


def _in_order(choice: Choice) -> list[Any]:
    return sorted(choice.values())  # type: ignore[type-var]
