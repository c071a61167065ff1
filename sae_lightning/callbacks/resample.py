"""Dead latents are pointed at rows that are badly explained (Bricken et al. 2023, "Towards Monosemanticity", appendix)."""

from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lightning.data.batch import Batch
from sae_lightning.data.rows import RowsDataModule, generator
from sae_lightning.errors import InputError
from sae_lightning.module import SAEModule


class Resample(L.Callback):
    """Gives each dead latent a row of its own, now and then: in optimizer steps `steps`, or every `every_n_rows` rows.

        rows drawn without replacement among `rows` training rows, with probability ∝ ‖e‖^power
        u = (x − b_dec)/‖x − b_dec‖,   W_dec,j ← u,   W_enc,j ← 0.2 · mean norm of living encoder rows · u  (or `encoder_norm` · u)
        b_enc,j ← 0,   the architecture's own parameters as it says,   the optimizer's moments of exactly those slices ← 0

    At most `times` (None: no limit). Without `steps` and `every_n_rows`: every eighth of the run, so that with four times the second
    half is left alone, as published. Where x and y differ, the encoder row comes from x and the decoder row from y. Rows are drawn anew
    from the data by (`seed`, step): nothing is kept between steps, a resumed run draws the same, and all ranks do. More dead latents than
    rows: the rest waits for the next time. Logged: sparsity/resampled.
    Errors: InputError for numbers that are not positive, and for both `steps` and `every_n_rows`.
    """

    def __init__(self, steps: list[int] | None = None, every_n_rows: int | None = None, times: int | None = 4, rows: int = 8192,
                 power: Literal[2, 4] = 4, encoder_norm: float | None = None, seed: int = 0):  # fmt: skip
        if steps is not None and every_n_rows is not None:
            raise InputError("callbacks.resample: give steps or every_n_rows, and set the other to null")
        numbers = {"steps": min(steps or [1]), "every_n_rows": every_n_rows, "times": times, "rows": rows, "encoder_norm": encoder_norm}
        for name, value in numbers.items():
            if value is not None and value <= 0:
                raise InputError(f"callbacks.resample: {name} must be positive, got {value}")
        self.steps, self.every_n_rows, self.times, self.rows = steps, every_n_rows, times, rows
        self.power, self.encoder_norm, self.seed = power, encoder_norm, seed

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, rows_per_step = trainer.global_step, _data(trainer).batch_size * trainer.accumulate_grad_batches
        if pl_module.sums or not self.is_due(step, trainer.max_steps, rows_per_step):
            return
        resampled = self.resample_(trainer, pl_module)
        for logger in trainer.loggers:
            logger.log_metrics({"sparsity/resampled": resampled}, step=step)

    def is_due(self, step: int, run: int, rows_per_step: int) -> bool:
        """Whether it is time after optimizer step number `step` of a run of `run`, of `rows_per_step` rows each."""
        if self.steps is not None:
            before = sum(other < step for other in set(self.steps))
            is_due = step in self.steps
        else:
            every = max(1, run * rows_per_step // 8) if self.every_n_rows is None else self.every_n_rows
            before = (step - 1) * rows_per_step // every
            is_due = step * rows_per_step // every > before
        return is_due and (self.times is None or before < self.times)

    @torch.no_grad()
    def resample_(self, trainer: L.Trainer, module: SAEModule) -> int:
        """Revives dead latents now; returns how many."""
        dictionary, data, step = module.sae.dictionary, _data(trainer), trainer.global_step
        dead = dictionary.dead.nonzero()[:, 0]
        if not len(dead):
            return 0
        rows = module.scaled(data.sample(self.rows, step).to(module.device))
        chosen = _draw(_errors(module, rows, data.batch_size) ** (self.power / 2), len(dead), generator(self.seed, "resample", step))
        chosen = trainer.strategy.broadcast(chosen).to(module.device)  # errors of two devices may differ in the last bit
        latents, alive = dead[: len(chosen)], ~dictionary.dead
        y = rows.y[chosen] - dictionary.b_dec
        x = y if rows.y is rows.x else rows.x[chosen] - (dictionary.b_dec if dictionary.subtract else 0)
        dictionary.revive_(latents, x, y, self.encoder_norm)
        module.sae.after_revival_(latents, alive)
        forget_(trainer.optimizers, module.sae.per_latent(), latents)
        return len(latents)


def forget_(optimizers: list[torch.optim.Optimizer], parameters: list[torch.nn.Parameter], latents: Int[Tensor, " n"]) -> None:
    """Sets an optimizer's moments of these latents to 0, and nothing else."""
    for optimizer in optimizers:
        for parameter in parameters:
            for moment in optimizer.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    moment[latents] = 0


def _data(trainer: L.Trainer) -> RowsDataModule:
    return trainer.datamodule  # type: ignore[attr-defined]


def _errors(module: SAEModule, rows: Batch, batch_size: int) -> Float[Tensor, " rows"]:
    """‖e‖² of every row, a batch at a time."""
    parts = [
        (y - module.sae.step(x, x if rows.y is rows.x else y).reconstruction).double().square().sum(1)
        for x, y in zip(rows.x.split(batch_size), rows.y.split(batch_size), strict=True)
    ]
    return torch.cat(parts)


def _draw(weights: Float[Tensor, " rows"], n: int, g: torch.Generator) -> Int[Tensor, " m"]:
    """At most n different rows, with probability ∝ weight."""
    weights = (weights / weights.max().clamp(min=1e-300)).cpu()
    n = min(n, int((weights > 0).sum()))
    return weights.multinomial(n, generator=g) if n else torch.zeros(0, dtype=torch.int64)
