"""Small searches and grids of the real conf/, in processes that are forked, and what they left."""

import json
import logging
from pathlib import Path
from typing import Any

import optuna

import sae_lightning.data.synthetic
import sae_lightning.run.build
import sae_lightning.run.finish
import sae_lightning.sweeps.search  # noqa: F401 (once, for all children)
from tests.forks import train

TINY = (
    "data.d=16 data.n_directions=64 data.l0=3 data.rows_held_out=512 data.batch_size=64 dictionary.expansion_factor=4 trainer.max_steps=40 "
    "trainer.val_check_interval=10 trainer.log_every_n_steps=10 trainer.accelerator=cpu evaluate=[] "
    "callbacks=[miracle_distance,final_validation,trial,last] callbacks.last.every_n_steps=5"
)
SEARCH = f"-m hydra/sweeper=optuna {TINY} sweep.name=s sweep.max_restarts=1000"
"""The architecture's own space but for the size, which says how long a step takes."""


def typed(words: str, root: Path) -> int:
    """What `python train.py <words>`, typed in `root`, exits with."""
    child = train(words, root)
    child.join()
    return child.exitcode


def study(root: Path, name: str = "s") -> optuna.Study:
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna.load_study(name, f"sqlite:///{root}/multirun/{name}/study.db")


def states(root: Path) -> list[str]:
    return [trial.state.name for trial in study(root).trials]


def jobs(root: Path, name: str = "s") -> dict[str, dict[str, Any]]:
    """run.json by folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted((root / "multirun" / name).glob("*/run.json"))}


def said(root: Path) -> str:
    return (root / "out").read_text() + (root / "err").read_text()
