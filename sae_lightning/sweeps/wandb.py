"""The file of a W&B sweep over the same space as a search: python -m sae_lightning.sweeps.wandb [words] > sweep.yaml"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sae_lightning.errors import InputError, exit_status
from sae_lightning.run.command import validate
from sae_lightning.run.composer import Composer
from sae_lightning.sweeps.space import Choice, Dimension, split

METHODS = {"tpe": "bayes", "gp": "bayes", "cmaes": "bayes", "nsgaii": "bayes", "random": "random", "grid": "grid"}
"""What W&B has in place of our samplers."""
USAGE = "usage: python -m sae_lightning.sweeps.wandb [key=value …] > sweep.yaml; then: wandb sweep sweep.yaml && wandb agent …"


def sweep_file(words: Sequence[str], conf: Path) -> dict[str, Any]:
    """What `wandb sweep` reads: the space, objective, trials and Hyperband of these words, which every run gets, too.

    Errors: InputError for words that are wrong, for several objectives, for nothing to search, and for a pruner that W&B has not.
    """
    composer = Composer(conf, "train", words=words)
    searching = [*words, "hydra/sweeper=optuna"]
    cfg = validate(composer, searching, multirun=True)
    settings = cfg.sweep
    if not isinstance(settings.metric, str):
        raise InputError("a W&B sweep has one objective: choose another sweep than pareto, or set sweep.metric and sweep.direction")
    space, fixed = split(words, settings.space)
    made: dict[str, Any] = {
        "program": "train.py",
        "method": METHODS[_option(settings.sampler)],
        "metric": {"name": settings.metric, "goal": settings.direction},
        "run_cap": int(settings.n_trials),
        "parameters": {name: parameter(dimension) for name, dimension in space.items()},
    }
    stop = early_stop(settings.pruner)
    if stop is not None:
        made["early_terminate"] = stop
    own = [word for word in fixed if not word.startswith(("sweep", "hydra"))]
    logger = [] if any(word.startswith("logger=") for word in own) else ["logger=[csv,wandb]"]
    made["command"] = ["${env}", "${interpreter}", "${program}", *own, *logger, "${args_no_hyphens}"]
    return made


def parameter(dimension: Dimension) -> dict[str, Any]:
    """A setting as W&B writes it. A choice is written as on a command line where it is no number or truth value."""
    if isinstance(dimension, Choice):
        return {"values": dimension.values()}
    low, high = dimension.low, dimension.high
    if dimension.is_log:
        kind = "q_log_uniform_values" if dimension.is_integer else "log_uniform_values"
        return {"distribution": kind, "min": low, "max": high} | ({"q": 1} if dimension.is_integer else {})
    if dimension.step not in (None, 1):
        return {"values": dimension.values()}
    return {"distribution": "int_uniform" if dimension.is_integer else "uniform", "min": low, "max": high}


def early_stop(pruner: Mapping[str, Any]) -> dict[str, Any] | None:
    """W&B has Hyperband only. Errors: InputError for another pruner."""
    name = _option(pruner)
    if name == "none":
        return None
    if name != "hyperband":
        raise InputError(f"W&B does not know sweep/pruner={name}: choose hyperband or none")
    return {"type": "hyperband", "min_iter": pruner["min_iter"], "eta": pruner["eta"]} | ({"s": pruner["s"]} if pruner["s"] else {})


def _option(part: Mapping[str, Any]) -> str:
    return str(part["_target_"]).rpartition(".")[2]


def main(argv: Sequence[str], conf: Path) -> int:
    """Exit code: 2 for what is refused."""
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return 0
    return exit_status(lambda: print(yaml.safe_dump(sweep_file(argv, conf), sort_keys=False), end=""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path.cwd() / "conf"))
