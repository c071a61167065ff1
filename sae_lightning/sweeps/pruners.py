"""What gives up a trial that is worse than others were at its age: conf/sweep/pruner. Ages are counted in validations.

`reports`: how many validations a run of full length has. Nothing is given up at its last one (`callbacks.trial` sees to that).
"""

from typing import TYPE_CHECKING

from sae_lightning.errors import InputError

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


def hyperband(reports: int, min_iter: int = 1, eta: int = 3, s: int | None = None) -> "BasePruner":
    """Hyperband (arXiv:1603.06560). `s`: how many brackets, those that begin earliest; None: as many as `reports` has rungs.

    Errors: InputError for a minimum below 1, fewer than two to choose from, and no bracket.
    """
    _check(min_iter, eta)
    if s is not None and s < 1:
        raise InputError(f"sweep.pruner.s is {s}: give a positive number of brackets, or null")
    from sae_lightning.sweeps.hyperband import Hyperband

    return Hyperband(reports, min_iter, eta, s)


def halving(reports: int, min_iter: int = 1, eta: int = 3) -> "BasePruner":
    """Asynchronous successive halving (arXiv:1810.05934). Errors: as `hyperband`."""
    _check(min_iter, eta)
    from optuna.pruners import SuccessiveHalvingPruner

    return SuccessiveHalvingPruner(min_resource=min_iter, reduction_factor=eta)


def median(reports: int, n_startup_trials: int = 5, min_iter: int = 1) -> "BasePruner":
    """Worse than the median of all at the same age. Errors: as `hyperband`."""
    _check(min_iter, 2)
    from optuna.pruners import MedianPruner

    return MedianPruner(n_startup_trials, n_warmup_steps=min_iter - 1)


def none(reports: int) -> "BasePruner":
    """Nothing is given up."""
    from optuna.pruners import NopPruner

    return NopPruner()


def _check(min_iter: int, eta: int) -> None:
    if min_iter < 1 or eta < 2:
        raise InputError(f"sweep.pruner: min_iter must be 1 or more and eta 2 or more, got {min_iter} and {eta}")
