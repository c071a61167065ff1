"""A run ends with a validation, whatever its length."""

from typing import Any

import lightning as L


class FinalValidation(L.Callback):
    """Validates after the last optimizer step, also where `trainer.val_check_interval` does not divide the number of steps."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Lightning validates before it stops because it was told to.
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True
