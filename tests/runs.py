"""Runs of the real conf/ in this process."""

import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

if TYPE_CHECKING:
    from sae_lightning.run.build import Run

ROOT = Path(__file__).parents[1]
SMALL = (
    "data.d=16 data.n_directions=64 data.l0=3 data.rows_held_out=512 data.batch_size=64 dictionary.expansion_factor=4 "
    "trainer.max_steps=40 trainer.val_check_interval=20 trainer.log_every_n_steps=10 trainer.accelerator=cpu"
)
"""Words for a run of a second on known directions."""
QUIET = "callbacks.progress_bar=null callbacks.plots=null callbacks.log_time=null callbacks.log_hardware=null"
"""Nothing is shown or drawn at validation, and nothing depends on the clock: all that is logged is the same each time."""
WITH_CALLBACKS = f"{SMALL} callbacks.last.every_n_steps=20 {QUIET}"


@cache
def _composer():
    from sae_lightning.run.composer import Composer

    return Composer(ROOT / "conf", "train")


@cache
def _checked(words: str) -> DictConfig:
    """Composed and checked once for equal words: a third of what a small run takes."""
    from sae_lightning.run.command import validate

    return validate(_composer(), [*words.split(), "paths.run=nowhere"])


def compose(words: str, folder: Path) -> DictConfig:
    """The checked configuration of a run into `folder`."""
    cfg = copy.deepcopy(_checked(words))
    cfg.paths.run = str(folder)
    return cfg


def fit(words: str, folder: Path, checkpoint: Path | None = None) -> "Run":
    """Trains, without what follows a training."""
    from sae_lightning.run.build import build

    run = build(compose(words, folder))
    run.trainer.fit(run.module, run.data, ckpt_path=checkpoint or run.checkpoint, weights_only=True)
    return run
