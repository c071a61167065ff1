"""Any number of an SAE over the run."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.models.base import SAE
from sae_lightning.module import SAEModule
from sae_lightning.schedules import Schedule as Curve


class Schedule(L.Callback):
    """Sets numbers of the SAE before each optimizer step: `numbers` is name → what `schedules.Schedule` takes.

        callbacks=[default,schedule] 'callbacks.schedule.numbers={k: {start: 64, end: 16}, …}'

    A number is a buffer of one float (a dual, a target, a weight: filled in place), or a plain int or float of the SAE (k: set; an int is
    rounded). Since a value depends on the step alone, nothing is saved. A checkpoint and an export hold the values of the last step
    that was done, and data calibrates what starts with the first one's. Logged with the architecture's other numbers: topk/k.
    Errors: InputError for names that this architecture has not, and for values that it cannot take, before anything long begins.
    """

    def __init__(self, numbers: Mapping[str, Any]):
        if not numbers:
            raise InputError("callbacks.schedule.numbers is empty: say what moves, as callbacks.schedule.numbers={k: {start: 64, end: 16}}")
        self.curves: dict[str, Curve] = {}
        for name, settings in numbers.items():
            try:
                self.curves[name] = Curve.of(settings)
            except InputError as error:
                raise InputError(f"callbacks.schedule.numbers.{name}: {error}") from None

    def check(self, sae: SAE, steps: int) -> None:
        """Errors: InputError where `sae` has no such number, or cannot have it so."""
        known = movable(sae)
        for name, curve in self.curves.items():
            if name not in known:
                raise InputError(
                    f"callbacks.schedule.numbers.{name}: {sae.architecture} has no such number: choose {', '.join(sorted(known))}"
                )
            for value in curve.extremes(steps):
                try:
                    sae.check_number(name, round(value) if isinstance(known[name], int) else value)
                except InputError as error:
                    raise InputError(f"callbacks.schedule.numbers.{name}: {error}") from None

    def setup(self, trainer: L.Trainer, pl_module: SAEModule, stage: str) -> None:
        if stage == "fit":  # comes before the module's own setup, which calibrates
            self.check(pl_module.sae, trainer.max_steps)
            self.set_(pl_module.sae, 1, trainer.max_steps)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: SAEModule, checkpoint: dict[str, Any]) -> None:
        """What is not a buffer is not in a checkpoint, and is needed where nothing is left to train."""
        self.set_(pl_module.sae, max(1, checkpoint["global_step"]), trainer.max_steps)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: SAEModule, batch: Any, batch_idx: int) -> None:
        self.set_(pl_module.sae, trainer.global_step + 1, trainer.max_steps)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.last is None or pl_module.sums:
            return
        sae = pl_module.sae
        plain = {name: float(value) for name, value in movable(sae).items() if name in self.curves and not isinstance(value, Tensor)}
        for logger in trainer.loggers if plain else ():
            logger.log_metrics({f"{sae.architecture}/{name}": value for name, value in plain.items()}, step=trainer.global_step)

    @torch.no_grad()
    def set_(self, sae: SAE, step: int, steps: int) -> None:
        """To the values of optimizer step number `step` (the first is 1) of `steps`."""
        numbers = movable(sae)
        for name, curve in self.curves.items():
            number, value = numbers[name], curve.at(step, steps)
            if isinstance(number, Tensor):
                number.fill_(value)
            else:
                setattr(sae, name, round(value) if isinstance(number, int) else value)


def movable(sae: SAE) -> dict[str, Tensor | int | float]:
    """The numbers of an SAE that are no counters, by name."""
    plain = {
        name: value
        for name, value in vars(sae).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith("_")
    }
    return plain | {name: buffer for name, buffer in sae.numbers().items() if buffer.is_floating_point()}
