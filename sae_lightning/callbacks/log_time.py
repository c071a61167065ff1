"""How fast a run is, and what it waits for."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from sae_lightning.callbacks.frequency import check_period, is_due
from sae_lightning.curves import log_values
from sae_lightning.module import SAEModule


class LogTime(L.Callback):
    """Since it last logged, validations left out:

        time/step_ms          mean duration of an optimizer step
        time/rows_per_s       rows trained on, of all ranks
        time/data_wait_pct    share of the time in which this process had no batch to train on
        time/training_s       all training so far, with what a resumed run did before
        time/validation_s     how long the last validation took; logged at each

    Every `every_n_steps` optimizer steps; None: at those that are logged. Errors: InputError for a period below 1.
    """

    def __init__(self, every_n_steps: int | None = None):
        self.period = check_period(every_n_steps, "log_time")
        self.training_s = 0.0
        self.step, self.waited, self.seconds, self.clock = 0, 0.0, 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        self._begin_(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.sums or not is_due(self.period, trainer, trainer.global_step):
            return
        seconds = self.seconds + time.perf_counter() - self.clock
        steps, waited = trainer.global_step - self.step, pl_module.rows.seconds_waited - self.waited
        self.training_s += seconds
        log_values(trainer, {
            "time/step_ms": 1000 * seconds / steps,
            "time/rows_per_s": steps * pl_module.rows_per_step / seconds,
            "time/data_wait_pct": 100 * waited / seconds,
            "time/training_s": self.training_s,
        }, is_monitored=False)  # fmt: skip
        self._begin_(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        now = time.perf_counter()
        self.seconds += now - self.clock
        self.clock = now

    def on_validation_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        now = time.perf_counter()
        if trainer.state.fn == TrainerFn.FITTING:
            log_values(trainer, {"time/validation_s": now - self.clock}, is_monitored=False)
        self.clock = now

    def state_dict(self) -> dict[str, Any]:
        return {"training_s": self.training_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.training_s = state_dict["training_s"]

    def _begin_(self, trainer: L.Trainer, module: SAEModule) -> None:
        """What is logged next is measured from here."""
        self.step, self.waited, self.seconds, self.clock = trainer.global_step, module.rows.seconds_waited, 0.0, time.perf_counter()
