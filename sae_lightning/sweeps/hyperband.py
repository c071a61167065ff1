"""Hyperband whose brackets are the same in every process."""

import math
import zlib
from typing import TYPE_CHECKING

import optuna

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class Hyperband(optuna.pruners.HyperbandPruner):
    """Optuna 2 draws a trial's bracket from Python's `hash`, which every process has another one of; this is one for all processes."""

    def __init__(self, reports: int, min_iter: int, eta: int, s: int | None):
        super().__init__(min_resource=min_iter, max_resource=max(reports, min_iter), reduction_factor=eta)
        self._n_brackets = 1 + math.floor(math.log(max(reports, min_iter) / min_iter, eta) + 1e-9)
        if s is not None:
            self._n_brackets = min(self._n_brackets, s)

    def _get_bracket_id(self, study: "Study", trial: "FrozenTrial") -> int:
        if not self._pruners:
            return 0
        ticket = zlib.crc32(f"{study.study_name}_{trial.number}".encode()) % self._total_trial_allocation_budget
        for bracket, budget in enumerate(self._trial_allocation_budgets):
            ticket -= budget
            if ticket < 0:
                return bracket
        raise AssertionError("budgets add up to the total")
