"""Every sampler of conf/: a search that is cut anywhere goes on as if it had not been."""

import logging
import warnings
from functools import partial
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf

from sae_lightning.errors import InputError
from sae_lightning.sweeps import samplers
from sae_lightning.sweeps.samplers import ForEachTrial, combinations
from sae_lightning.sweeps.space import split

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
