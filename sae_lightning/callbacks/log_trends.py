"""Averages and trends of what is logged."""

from collections import deque
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from sae_lightning.curves import log_values
from sae_lightning.errors import InputError
from sae_lightning.module import SAEModule
from sae_lightning.ranks import count, sum_over_ranks


class LogTrends(L.Callback):
    """Means of the loss over ALL steps, not over those that are logged; trends of numbers over the logged ones.

        details/window_train_loss_avg   since the last logged step
        details/epoch_train_loss_avg    since the beginning of the run (a run is one epoch)
        details/epoch_val_loss_avg      of the validations of the run;  details/val_train_loss_ratio = val/loss over the mean training
                                        loss since the validation before: above 1, and rising, where a run overfits
        gradients/norm_trend, latents/std_trend = relative change per 1000 steps of gradients/norm (where log_gradients logs it) and of
                                        train/latents_std: slope of the least-squares line through the last `window` logged values,
                                        over their mean

    Errors: InputError for a window below 2.
    """

    def __init__(self, window: int = 20):
        if window < 2:
            raise InputError(f"callbacks.log_trends.window is {window}: a trend needs two logged values or more")
        self.window = window
        self.sums: dict[str, Tensor] = {}
        """[sum, number] of the losses of the run, of those since the last logged step, and of those since the last validation."""
        self.validations: list[float] = []
        self.recent: dict[str, deque[tuple[int, float]]] = {name: deque(maxlen=window) for name in TRENDS}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"].detach().double() * trainer.accumulate_grad_batches  # Lightning has divided it
        new = torch.stack([loss, torch.ones_like(loss)])
        for name in ("run", "window", "validation"):
            self.sums[name] = self.sums[name].to(new.device) + new if name in self.sums else new
        if pl_module.last is None or pl_module.sums:
            return
        values = {"details/window_train_loss_avg": _mean(self.sums.pop("window")), "details/epoch_train_loss_avg": _mean(self.sums["run"])}
        for name, source in TRENDS.items():
            if source in trainer.callback_metrics:
                self.recent[name].append((trainer.global_step, float(trainer.callback_metrics[source])))
            if len(self.recent[name]) > 1:
                values[name] = trend(*zip(*self.recent[name], strict=True))
        log_values(trainer, values)

    def on_validation_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or "validation" not in self.sums:
            return
        loss, before = float(trainer.callback_metrics["val/loss"]), _mean(self.sums.pop("validation"))
        self.validations.append(loss)
        average = sum(self.validations) / len(self.validations)
        log_values(trainer, {"details/epoch_val_loss_avg": average, "details/val_train_loss_ratio": loss / before})

    def state_dict(self) -> dict[str, Any]:
        recent = {name: list(values) for name, values in self.recent.items()}
        return {"sums": dict(self.sums), "validations": list(self.validations), "recent": recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums, self.validations = dict(state_dict["sums"]), list(state_dict["validations"])
        self.recent = {name: deque(map(tuple, values), maxlen=self.window) for name, values in state_dict["recent"].items()}


TRENDS = {"gradients/norm_trend": "gradients/norm", "latents/std_trend": "train/latents_std"}
"""What each trend is of."""


def trend(steps: tuple[int, ...], values: tuple[float, ...]) -> float:
    """Slope of the least-squares line per 1000 steps, over the mean of the values; 0 where that is 0."""
    mean = float(np.mean(values))
    return 1000 * float(np.polyfit(np.asarray(steps) - steps[0], values, 1)[0]) / mean if mean else 0.0


def _mean(sum_and_number: Tensor) -> float:
    """Over all ranks. Every rank must call it."""
    total, number = (sum_over_ranks(sum_and_number) / count()).tolist()
    return total / number
