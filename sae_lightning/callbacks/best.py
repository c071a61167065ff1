"""The best of a run so far: a checkpoint and an export."""

import math
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from sae_lightning.callbacks.export import export
from sae_lightning.callbacks.last import save
from sae_lightning.callbacks.monitored import check_logged
from sae_lightning.module import SAEModule


class Best(Checkpoint):
    """After each validation that improves on all before it: <run>/checkpoints/best.ckpt and <run>/sae_best.

    `monitor`: a number that validation logs; `mode`: whether less ("min") or more ("max") of it is better. What is not a number is
    never the best. Errors: InputError when validation does not log `monitor`.
    """

    def __init__(self, monitor: str = "val/miracle_distance", mode: Literal["min", "max"] = "min"):
        self.monitor, self.mode = monitor, mode
        self.value = math.inf if mode == "min" else -math.inf

    def on_validation_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        check_logged(trainer, self.monitor, "callbacks.best.monitor")
        value = float(trainer.callback_metrics[self.monitor])
        improved = value < self.value if self.mode == "min" else value > self.value
        if trainer.strategy.reduce_boolean_decision(improved):
            self.value = value
            save(trainer, "best")
            export(trainer, pl_module, "sae_best", "best", {self.monitor: value})

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value = state_dict["value"]
