"""When a run logs, validates and saves."""

import itertools

from omegaconf import DictConfig, OmegaConf

from sae_lightning.errors import InputError


def check_intervals(cfg: DictConfig) -> None:
    """Logging, validation and checkpoints: each of them happens at every step of the rarer ones. Errors: InputError.

    So a checkpoint never cuts a logged or validated stretch in two. Those that come after the run's end do not count.
    """
    keys = ("trainer.log_every_n_steps", "trainer.val_check_interval", "callbacks.last.every_n_steps")
    steps = {key: OmegaConf.select(cfg, key, throw_on_missing=False) for key in keys}
    accumulated = OmegaConf.select(cfg, "trainer.accumulate_grad_batches")
    batches = steps["trainer.val_check_interval"]
    if isinstance(batches, int) and isinstance(accumulated, int) and accumulated > 1:
        if batches % accumulated:
            raise InputError(
                f"trainer.val_check_interval={batches} batches end inside an optimizer step of {accumulated}: choose a multiple"
            )
        steps["trainer.val_check_interval"] = batches // accumulated
    end = OmegaConf.select(cfg, "trainer.max_steps")
    counted = sorted((n, key) for key, n in steps.items() if isinstance(n, int) and n > 0 and isinstance(end, int) and n <= end)
    for (often, key), (rarely, other) in itertools.pairwise(counted):
        if rarely % often:
            raise InputError(
                f"{other} ({rarely} steps) is no multiple of {key} ({often} steps): logging, validation and checkpoints must fall together"
            )
