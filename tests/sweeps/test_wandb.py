"""W&B's sweep file and Optuna's search are the same search."""

import math
import subprocess
import sys
from typing import Any

import pytest
import yaml

from sae_lightning.errors import InputError
from sae_lightning.run.command import validate
from sae_lightning.run.composer import Composer
from sae_lightning.run.folder import run_id
from sae_lightning.sweeps.space import split
from sae_lightning.sweeps.wandb import sweep_file
from tests.runs import ROOT

CONF = ROOT / "conf"
SPACES = sorted(path.stem for path in (CONF / "sweep/space").glob("*.yaml"))


def model(space: str) -> str:
    return "usage_kl" if space == "miracle" else space


def bounds(parameter: dict[str, Any]) -> tuple[Any, ...]:
    """What W&B draws from: (lowest, highest, whether logarithmic, whether integers), or the values."""
    if "values" in parameter:
        return tuple(parameter["values"])
    kind = parameter["distribution"]
    return parameter["min"], parameter["max"], "log" in kind, kind == "int_uniform" or parameter.get("q") == 1


@pytest.mark.parametrize("name", SPACES)
def test_the_space_is_optunas(name):
    words = [f"model={model(name)}", f"sweep/space={name}", "sweep.n_trials=7"]
    made = sweep_file(words, CONF)
    cfg = Composer(CONF, "train").compose(words)
    space, _ = split(words, cfg.sweep.space)
    assert list(made["parameters"]) == list(space)
    for key, dimension in space.items():
        distribution, found = dimension.distribution(), bounds(made["parameters"][key])
        if hasattr(distribution, "choices"):
            assert found == distribution.choices
        else:
            kind = type(distribution).__name__
            assert found == (distribution.low, distribution.high, "Log" in kind, kind.startswith("Int"))
    assert made["metric"] == {"name": "val/miracle_distance", "goal": "minimize"}
    assert (made["run_cap"], made["method"]) == (7, "bayes")
    pruner = cfg.sweep.pruner
    expected = {"type": "hyperband", "min_iter": pruner.min_iter, "eta": pruner.eta} | ({"s": pruner.s} if pruner.s else {})
    assert made["early_terminate"] == expected


@pytest.mark.parametrize("name", SPACES)
def test_its_runs_are_commands_that_are_accepted(name):
    made = sweep_file([f"model={model(name)}", f"sweep/space={name}"], CONF)
    own = [word for word in made["command"] if not word.startswith("${")]
    for take in (0, -1):
        drawn = [f"{key}={_end(parameter, take)}" for key, parameter in made["parameters"].items()]
        validate(Composer(CONF, "train"), [*own, *drawn])


def _end(parameter: dict[str, Any], take: int) -> Any:
    return parameter["values"][take] if "values" in parameter else parameter["min" if take == 0 else "max"]


def test_as_it_is_typed(tmp_path):
    command = [sys.executable, "-m", "sae_lightning.sweeps.wandb"]
    done = subprocess.run([*command, "model=relu", "seed=3", "optimizer.lr=1e-3"], cwd=ROOT, capture_output=True, text=True)
    made = yaml.safe_load(done.stdout)
    assert set(made["parameters"]) == {"model.sparsity", "dictionary.expansion_factor"}
    assert math.isclose(made["parameters"]["model.sparsity"]["max"], 1.0)
    own = ["model=relu", "seed=3", "optimizer.lr=1e-3", "logger=[csv,wandb]"]
    assert made["command"] == ["${env}", "${interpreter}", "${program}", *own, "${args_no_hyphens}"]
    refused = subprocess.run([*command, "modle=relu"], cwd=ROOT, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: modle=relu: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["sweep=pareto"], "has one objective"), (["sweep/pruner=median"], "choose hyperband or none"), (["model=pca"], "nothing to search")],
)
def test_what_wandb_has_not_is_refused(words, said):
    with pytest.raises(InputError, match=said):
        sweep_file(words, CONF)


def test_the_agents_run_names_the_folder():
    assert run_id({"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "abc123"}) == "abc123"
    assert run_id({"WANDB_RUN_ID": "abc123"}) != "abc123"
