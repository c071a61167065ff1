"""How often a callback logs."""

import lightning as L

from sae_lightning.errors import InputError


def check_period(every_n_steps: int | None, name: str) -> int | None:
    """Errors: InputError for a period below 1, which names callbacks.<name>."""
    if every_n_steps is not None and every_n_steps < 1:
        raise InputError(
            f"callbacks.{name}.every_n_steps is {every_n_steps}: give a positive number of optimizer steps, or callbacks.{name}=null"
        )
    return every_n_steps


def is_due(period: int | None, trainer: L.Trainer, step: int) -> bool:
    """Whether optimizer step number `step` (from 1) is one of every `period`; None: whether it is one that is logged."""
    return step % (period or trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]
