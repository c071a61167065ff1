"""Every pruner of conf/, and what ours does otherwise than Optuna's."""

import ast
import logging
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf

from sae_lightning.errors import InputError
from sae_lightning.run.instantiate import instantiate
from sae_lightning.sweeps import pruners
from sae_lightning.sweeps.hyperband import Hyperband

CONF = Path(__file__).parents[2] / "conf/sweep/pruner"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(logging.WARNING)


def reports_until_given_up(pruner, trials: int, reports: int) -> list[int]:
    """How many reports each trial came to, each worse than the one before it."""
    study = optuna.create_study(pruner=pruner, study_name="s")
    lengths = []
    for number in range(trials):
        trial = study.ask()
        for report in range(1, reports + 1):
            trial.report(float(number), report)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, float(number))
        lengths.append(report)
    return lengths


@pytest.mark.parametrize(("name", "first"), [("hyperband", 1), ("halving", 1), ("median", 1), ("none", 9)])
def test_what_is_worse_is_given_up_at_a_rung(name, first):
    lengths = reports_until_given_up(instantiate(OmegaConf.load(CONF / f"{name}.yaml"))(9), 12, 9)
    assert lengths[0] == 9
    assert min(lengths) == first
    if name in ("hyperband", "halving"):
        assert set(lengths) <= {1, 3, 9}
    assert sorted(OPTIONS) == ["halving", "hyperband", "median", "none"]


BRACKETS = """
import logging
import optuna
from sae_lightning.sweeps.hyperband import Hyperband
optuna.logging.set_verbosity(logging.WARNING)
study = optuna.create_study(study_name="name")
pruner = Hyperband(27, 1, 3, None)
pruner._try_initialization(study)
print([pruner._get_bracket_id(study, trial) for trial in [study.ask() for _ in range(60)] and study.trials])
"""


def brackets(seed: str) -> list[int]:
    command, env = [sys.executable, "-c", BRACKETS], os.environ | {"PYTHONHASHSEED": seed}
    return ast.literal_eval(subprocess.run(command, env=env, cwd=CONF.parents[2], capture_output=True, text=True, check=True).stdout)


def test_a_trial_has_the_same_bracket_in_every_process():
    found = brackets("1")
    assert found == brackets("2")
    assert set(found) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("reports", "s", "expected"), [(1, None, 1), (2, None, 1), (3, None, 2), (9, None, 3), (80, None, 4), (81, None, 5), (81, 2, 2)]
)
def test_brackets_follow_from_the_length_of_the_run(reports, s, expected):
    pruner = Hyperband(reports, 1, 3, s)
    study = optuna.create_study(pruner=pruner)
    pruner._try_initialization(study)
    assert len(pruner._pruners) == expected


@pytest.mark.parametrize(
    ("settings", "said"), [({"min_iter": 0}, "min_iter must be 1"), ({"eta": 1}, "eta 2 or more"), ({"s": 0}, "pruner.s is 0")]
)
def test_what_cannot_be_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        pruners.hyperband(9, **settings)
