"""What a search hears of a run while it is trained."""

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from sae_lightning.callbacks.monitored import check_logged
from sae_lightning.errors import AwayError
from sae_lightning.module import SAEModule
from sae_lightning.sweeps.trial import GIVEN_UP, Place, attached, of_environment

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial

log = logging.getLogger(__name__)


class ReportToTrial(L.Callback):
    """Reports `monitor` to the Optuna trial of this run after each validation, and ends the run where the pruner gives it up.

    A report's number is that of its validation, right after a resume too. `pruner`: given the number of validations of the whole run,
    Optuna's pruner. At the last validation nothing is given up. Several monitors are not reported: Optuna prunes for one objective only.
    Rank 0 reports, and all ranks stop at the same step. Where the database is away for long, the run goes on without it. Outside a
    search this does nothing. Errors: InputError when validation does not log `monitor`.
    """

    def __init__(self, monitor: str | list[str], pruner: Callable[[int], Any]):
        self.monitor, self.pruner = monitor, pruner
        self.place: Place | None = None
        self.trial: Trial | None = None
        self.is_given_up = False

    def setup(self, trainer: L.Trainer, pl_module: SAEModule, stage: str) -> None:
        self.place = of_environment() if isinstance(self.monitor, str) and stage == "fit" else None
        if self.place is not None and trainer.is_global_zero:
            pruner: BasePruner = self.pruner(reports(trainer))
            try:
                self.trial = attached(self.place, pruner)
            except AwayError as error:
                log.warning("not reported to the search: %s", error)

    def on_validation_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        if self.place is None or trainer.state.fn != TrainerFn.FITTING or pl_module.sums:
            return
        gives_up = self.trial is not None and self._report(self.trial, trainer)
        if trainer.strategy.reduce_boolean_decision(gives_up, all=False):
            self.is_given_up = trainer.should_stop = True

    def _report(self, trial: "Trial", trainer: L.Trainer) -> bool:
        """Whether the trial is given up."""
        assert isinstance(self.monitor, str)
        check_logged(trainer, self.monitor, "optimized_metric")
        number = math.ceil(trainer.global_step / steps_between(trainer))
        is_last = trainer.global_step >= trainer.max_steps
        try:
            return self._is_worse(trial, number, float(trainer.callback_metrics[self.monitor]), is_last)
        except AwayError as error:
            log.warning("not reported to the search: %s", error)
            return False

    def _is_worse(self, trial: "Trial", number: int, value: float, is_last: bool) -> bool:
        if number not in trial.storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, number)
        if is_last or not trial.should_prune():
            return False
        trial.set_user_attr(GIVEN_UP, number)
        return True


def steps_between(trainer: L.Trainer) -> float:
    """Optimizer steps from one validation to the next."""
    batches = trainer.val_check_interval
    assert isinstance(batches, int)
    return batches / trainer.accumulate_grad_batches


def reports(trainer: L.Trainer) -> int:
    """How many validations a run of full length has."""
    return max(1, math.ceil(trainer.max_steps / steps_between(trainer)))
