"""The learning rate as a curve."""

import lightning as L
from torch.optim import Optimizer

from sae_lightning.curves import log_values


class LearningRate(L.Callback):
    """Logs details/learning_rate: the one that the optimizer step uses at whose number it stands. Needs neither logger nor schedule."""

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step + 1
        if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            log_values(trainer, {"details/learning_rate": float(optimizer.param_groups[0]["lr"])}, step)
