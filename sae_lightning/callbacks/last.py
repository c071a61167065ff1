"""The checkpoint that a stopped run goes on from."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from sae_lightning.errors import InputError


class Last(Checkpoint):
    """Saves <run>/checkpoints/last.ckpt every `every_n_steps` optimizer steps, and at the end of the run.

    A checkpoint that falls on a step that is validated is written after the validation: saved before it, a resumed run would never
    do that validation. It comes after all other callbacks, so that it holds what they did at its step. Errors: InputError for a
    period below 1.
    """

    def __init__(self, every_n_steps: int = 1000):
        if every_n_steps < 1:
            raise InputError(f"callbacks.last.every_n_steps is {every_n_steps}: give a positive number of optimizer steps")
        self.every_n_steps = every_n_steps
        self.saved_step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.callbacks = [*(other for other in trainer.callbacks if other is not self), self]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._is_due(trainer) and not _validation_follows(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self._is_due(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.saved_step != trainer.global_step:
            self._save(trainer)

    def _is_due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        at_the_end = trainer.should_stop or step == trainer.max_steps
        return step != self.saved_step and (step % self.every_n_steps == 0 or at_the_end)

    def _save(self, trainer: L.Trainer) -> None:
        self.saved_step = trainer.global_step
        save(trainer, "last")


def save(trainer: L.Trainer, name: str) -> None:
    """Writes <run>/checkpoints/<name>.ckpt. What was logged is written first: a curve reaches at least as far as a checkpoint."""
    for logger in trainer.loggers:
        logger.save()
    trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / f"{name}.ckpt", weights_only=False)


def _validation_follows(trainer: L.Trainer) -> bool:
    """Whether Lightning validates at this step, after the callbacks. It asks itself the same way, a moment later."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
