"""What a training step says of itself: the numbers of a logged step."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import Tensor

from sae_lightning.data.batch import Batch
from sae_lightning.models.base import Step
from sae_lightning.ranks import count, sum_over_ranks

if TYPE_CHECKING:
    from sae_lightning.module import SAEModule


@torch.no_grad()
def of_step(module: "SAEModule", batch: Batch, step: Step) -> dict[str, float]:
    """All of them, by name, over all ranks: every rank must call it.

    train/loss; every term twice, plain as train/<term> and weighted as loss/<term>, whose sum is the loss; every metric as
    train/<metric>; <architecture>/<number> for what the architecture keeps; train/dead, dead_pct, alive; details/….
    `batch`, `step`: the last micro-batch, raw.
    """
    metrics = module.train_metrics
    metrics.update(batch, step)
    values = _terms(step) | {f"train/{name}": float(value) for name, value in metrics.compute().items()}
    metrics.reset()
    sae, rows = module.sae, module.rows
    values |= {f"{sae.architecture}/{name}": float(number) for name, number in sae.numbers().items()}
    dead = float(sae.dictionary.total(sae.dictionary.dead.sum().float()))
    values |= {"train/dead": dead, "train/dead_pct": 100 * dead / sae.dictionary.d_sae, "train/alive": sae.dictionary.d_sae - dead}
    own = {"rows": rows.rows_trained, "batch_size": module.rows_per_step, **rows.numbers()}
    own["epoch"] = int(own.get("passes", 0))
    if rows.transformer is not None:
        own["tokens"] = own["rows"]
    return values | {f"details/{name}": float(value) for name, value in own.items()}


def _terms(step: Step) -> dict[str, float]:
    """The loss and its terms, means over ranks."""
    named: dict[str, Tensor] = {"train/loss": step.loss}
    for name, term in step.losses.items():
        named |= {f"train/{name}": term.value, f"loss/{name}": term.weight * term.value}
    total = sum_over_ranks(torch.stack([value.detach().float() for value in named.values()]))
    return dict(zip(named, (total / count()).tolist(), strict=True))


def log_values(trainer: L.Trainer, values: Mapping[str, float], step: int | None = None, is_monitored: bool = True) -> None:
    """Hands numbers to every logger, and to what monitors one: checkpoints remember those, so that none is of the clock.

    `step`: optimizer steps done; the trainer's where None is given.
    """
    step = trainer.global_step if step is None else step
    if is_monitored:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=step)
