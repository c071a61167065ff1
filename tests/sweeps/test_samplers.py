"""Every sampler of conf/: a search that is cut anywhere goes on as if it had not been."""

import itertools
import logging
import math
import warnings
from functools import partial
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sae_lightning.errors import InputError
from sae_lightning.sweeps import samplers
from sae_lightning.sweeps.gaussian_process import position, value_at
from sae_lightning.sweeps.samplers import ForEachTrial, combinations
from sae_lightning.sweeps.space import Interval, split

OPTIONS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf/sweep/sampler").glob("*.yaml"))
NUMBERS, _ = split(["a=tag(log,interval(1e-3,1))", "b=int(interval(1,9))", "c=x,y"], {})
GRID, _ = split(["a=1,2,3", "b=range(0,4)"], {})


def search(name: str, storage, trials: int) -> list[dict]:
    """The settings of all trials of a study, after so many more."""
    conf = OmegaConf.load(Path(__file__).parents[2] / f"conf/sweep/sampler/{name}.yaml")
    settings = {str(key): value for key, value in conf.items() if not str(key).startswith("_")}
    space = GRID if name == "grid" else NUMBERS
    sampler = ForEachTrial(partial(getattr(samplers, name), **settings), space, seed=3)
    study = optuna.create_study(storage=storage, study_name="s", sampler=sampler, load_if_exists=True)
    for _ in range(trials):
        trial = study.ask({key: dimension.distribution() for key, dimension in space.items()})
        study.tell(trial, sum(value for value in trial.params.values() if not isinstance(value, str)))
    return [trial.params for trial in study.trials]


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@pytest.mark.parametrize("name", OPTIONS)
def test_a_search_that_is_cut_goes_on_as_if_it_had_not_been(name):
    whole = search(name, optuna.storages.InMemoryStorage(), 12)
    parts = optuna.storages.InMemoryStorage()
    for length in (1, 4, 7):
        found = search(name, parts, length)
    assert found == whole
    assert len({str(params) for params in whole}) == 12


def test_parameters_that_are_drawn_alone_are_not_drawn_alike():
    space, _ = split(["a=interval(0,1)", "b=interval(0,1)"], {})
    study = optuna.create_study(sampler=ForEachTrial(samplers.random, space, seed=0))
    params = [study.ask({key: dimension.distribution() for key, dimension in space.items()}).params for _ in range(20)]
    assert all(abs(one["a"] - one["b"]) > 1e-6 for one in params)


def test_a_grid_is_each_combination_once():
    found = search("grid", optuna.storages.InMemoryStorage(), combinations(GRID))
    assert sorted(tuple(params.values()) for params in found) == [(a, b) for a in (1, 2, 3) for b in range(4)]


def test_a_grid_has_no_interval():
    with pytest.raises(InputError, match="has no single values"):
        combinations(NUMBERS)


MIXED, _ = split(["a=interval(0,1)", "b=tag(log,interval(1e-4,1))", "c=int(interval(-3,5))", "d=range(2,9,3)", "e=tag(log,int(interval(1,64)))",
                  "f=choice(16,4,8)", "g=x,y,null", "h=true,false"], {})  # fmt: skip


@given(st.data())
def test_every_value_has_a_place_and_is_found_there(data):
    draws = optuna.samplers.RandomSampler(data.draw(st.integers(0, 999)))
    for dimension in MIXED.values():
        value = draws.sample_independent(None, None, "p", dimension.distribution())  # type: ignore[arg-type]
        found = value_at(dimension, position(dimension, value))
        assert found == pytest.approx(value, rel=1e-9) if isinstance(value, float) else found is value or found == value
        ends = [value_at(dimension, x) for x in (0.0, 1.0)]
        assert ends == [dimension.low, dimension.high] if isinstance(dimension, Interval) else set(ends) <= set(dimension.words)


def test_a_gaussian_process_finds_what_draws_do_not():
    space, _ = split(["a=tag(log,interval(1e-3,1))", "b=choice(4,8,16)", "c=x,y"], {})

    def best(make) -> float:
        study = optuna.create_study(sampler=ForEachTrial(make, space, seed=1))
        for _ in range(15):
            trial = study.ask({key: dimension.distribution() for key, dimension in space.items()})
            p = trial.params
            study.tell(trial, math.log10(p["a"] / 0.05) ** 2 + abs(p["b"] - 8) / 8 + (p["c"] == "x"))
        return study.best_value

    found, drawn = best(partial(samplers.gp, n_startup_trials=8)), best(samplers.random)
    assert found < 1e-3 < drawn / 10


def test_a_gaussian_process_with_several_objectives_fills_the_front():
    space, _ = split(["a=interval(0,1)", "b=interval(0,1)"], {})
    study = optuna.create_study(
        sampler=ForEachTrial(partial(samplers.gp, n_startup_trials=8), space, seed=1), directions=["minimize", "maximize"]
    )
    for _ in range(11):
        trial = study.ask({key: dimension.distribution() for key, dimension in space.items()})
        a, b = trial.params.values()
        study.tell(trial, [a + b, math.sqrt(a) - b])  # better without b, whatever a is
    assert all(trial.params["b"] < 0.05 for trial in study.best_trials if trial.number >= 8)
    assert sum(trial.number >= 8 for trial in study.best_trials) >= 2


def test_what_is_at_work_is_not_proposed_again():
    space, _ = split(["a=interval(0,1)"], {})
    study = optuna.create_study(sampler=ForEachTrial(partial(samplers.gp, n_startup_trials=4), space, seed=1))
    ask = lambda: study.ask({key: dimension.distribution() for key, dimension in space.items()})  # noqa: E731
    for _ in range(4):
        study.tell(trial := ask(), (trial.params["a"] - 0.6) ** 2)
    found = sorted(ask().params["a"] for _ in range(3))
    assert all(b - a > 1e-3 for a, b in itertools.pairwise(found))
