"""Numbers that somebody waits for."""

import lightning as L

from sae_lightning.errors import InputError


def check_logged(trainer: L.Trainer, name: str, key: str) -> None:
    """Errors: InputError where validation logs no such number. `key`: which setting names it."""
    if name not in trainer.callback_metrics:
        known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
        raise InputError(f"{key} is {name!r}, which validation does not log: choose one of {known}")
