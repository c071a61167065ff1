"""The checkpoint that a stopped run goes on from."""

import logging
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn

from sae_lightning.callbacks.export import keep
from sae_lightning.errors import InputError, Interrupted
from sae_lightning.files import remove_leftovers
from sae_lightning.module import SAEModule
from sae_lightning.signals import StopRequest

log = logging.getLogger(__name__)


class Last(Checkpoint):
    """Saves <run>/checkpoints/last.ckpt every `every_n_steps` optimizer steps, at the end of the run, and when a signal stops it.

    The one before it is kept as previous.ckpt. A checkpoint that falls on a step that is validated is written after the validation:
    saved before it, a resumed run would never do that validation. It comes after all other callbacks, so that it holds what they did at
    its step.

    After SIGINT, SIGTERM or SIGUSR1 the run saves at the end of the optimizer step at work (and of its validation, where there is one)
    and raises Interrupted; a second signal raises it at once. Several ranks must stop at the same step, and one of them may have got
    the signal alone: they ask each other at steps that are logged, where they wait for the accelerator anyway, and after validations.

    Errors: InputError for a period below 1.
    """

    def __init__(self, every_n_steps: int = 1000):
        if every_n_steps < 1:
            raise InputError(f"callbacks.last.every_n_steps is {every_n_steps}: give a positive number of optimizer steps")
        self.every_n_steps = every_n_steps
        self.saved_step = 0
        self.stop = StopRequest()
        self.values: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.callbacks = [*(other for other in trainer.callbacks if other is not self), self]  # type: ignore[attr-defined]
        _leave_signals_to_us(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.values.items()})
        if trainer.is_global_zero:
            remove_leftovers(_folder(trainer))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_step = trainer.global_step
        self.stop.begin_(says=trainer.is_global_zero)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.sums:  # between optimizer steps only
            return
        stops = self._is_told_to_stop(trainer, asks=trainer.global_step % trainer.log_every_n_steps == 0)  # type: ignore[attr-defined]
        if (stops or self._is_due(trainer)) and not _validation_follows(trainer):
            self._save(trainer, stops)

    def on_validation_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or pl_module.sums:
            return
        stops = self._is_told_to_stop(trainer, asks=True)
        if stops or self._is_due(trainer):
            self._save(trainer, stops)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.saved_step != trainer.global_step:
            self._save(trainer)
        self.stop.end_()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.stop.end_()
        launcher = trainer.strategy.launcher
        if isinstance(exception, Interrupted) and not exception.is_agreed and isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)  # they would wait for this rank

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["values"] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.values = checkpoint.get("values", {})

    def _is_due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        at_the_end = trainer.should_stop or step == trainer.max_steps
        return step != self.saved_step and (step % self.every_n_steps == 0 or at_the_end)

    def _is_told_to_stop(self, trainer: L.Trainer, asks: bool) -> bool:
        """Equal on all ranks, which must call it together. asks: whether this is a moment to ask the others."""
        if trainer.world_size == 1:
            return self.stop.number is not None
        return asks and trainer.strategy.reduce_boolean_decision(self.stop.number is not None, all=False)

    def _save(self, trainer: L.Trainer, stops: bool = False) -> None:
        if self.saved_step != trainer.global_step:
            self.saved_step = trainer.global_step
            save(trainer, "last", previous="previous")
        if stops:
            number = signal.SIGTERM if self.stop.number is None else self.stop.number
            if trainer.is_global_zero:
                log.warning("stopped by %s after step %d of %d", signal.Signals(number).name, trainer.global_step, trainer.max_steps)
            raise Interrupted(number, trainer.global_rank, is_agreed=True)


def save(trainer: L.Trainer, name: str, previous: str | None = None) -> None:
    """Writes <run>/checkpoints/<name>.ckpt; what it was becomes <previous>.ckpt.

    What was logged is written first: a curve reaches at least as far as a checkpoint.
    """
    for logger in trainer.loggers:
        logger.save()
    folder = _folder(trainer) / "checkpoints"
    kept = None if previous is None else folder / f"{previous}.ckpt"
    trainer.save_checkpoint(folder / f"{name}.ckpt", weights_only=False, storage_options=kept)
    if trainer.is_global_zero:
        keep(trainer, folder / f"{name}.ckpt", "checkpoint", "latest" if name == "last" else name, {"step": trainer.global_step})


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _validation_follows(trainer: L.Trainer) -> bool:
    """Whether Lightning validates at this step, after the callbacks. It asks itself the same way, a moment later."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _leave_signals_to_us(trainer: L.Trainer) -> None:
    """Lightning 2.6 exits with 0 after SIGTERM, without a checkpoint, requeues SLURM jobs by itself, and with several ranks talks to
    the others from inside its handler and before every step, waiting for the accelerator each time.
    """
    trainer._signal_connector.register_signal_handlers = _nothing
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing


def _nothing() -> None: ...
