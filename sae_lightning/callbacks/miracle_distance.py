"""One number for how good an SAE is: sweeps minimise it."""

import math
from collections.abc import Mapping
from typing import Literal

import lightning as L

from sae_lightning.curves import log_values
from sae_lightning.errors import InputError
from sae_lightning.module import SAEModule

FLOOR = 0.1
"""A value that is ten times better than its target counts no further."""


class MiracleDistance(L.Callback):
    """The distance of a validation from its targets: sqrt(Σ_k w_k r_k²), r_k = log(max(value_k / target_k, 0.1)).

    The values are `mse` (or `normalised_mse`), `l0` and `dead_pct`. Better than the target counts as 0 for the error and for the share
    of dead latents; `two_sided` counts it as a distance too. Logged as val/miracle_distance, on every rank, for checkpoints and sweeps.
    Errors: InputError for targets that are not positive, negative weights, or metrics that are not there.
    """

    def __init__(self, target_mse: float = 0.015, target_sparsity: float = 15.0, target_dead_pct: float = 5.0, mse_weight: float = 1.0,
                 sparsity_weight: float = 1.0, dead_pct_weight: float = 1.0, mse: Literal["mse", "normalised_mse"] = "mse",
                 two_sided: bool = False):  # fmt: skip
        self.targets = {mse: target_mse, "l0": target_sparsity, "dead_pct": target_dead_pct}
        self.weights = {mse: mse_weight, "l0": sparsity_weight, "dead_pct": dead_pct_weight}
        self.one_sided = set() if two_sided else {mse, "dead_pct"}
        if min(self.targets.values()) <= 0 or min(self.weights.values()) < 0:
            raise InputError(
                f"callbacks.miracle_distance: targets must be positive and weights not negative, got {self.targets} and {self.weights}"
            )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        # Before the module's own hook, which logs and resets the metrics; a metric's value is computed once and remembered.
        values = pl_module.metrics.compute()
        if missing := set(self.targets) - set(values):
            raise InputError(
                f"callbacks.miracle_distance needs the metrics {', '.join(sorted(missing))}: add them, or say ~callbacks.miracle_distance"
            )
        distance = self.distance({name: float(values[name]) for name in self.targets})
        log_values(trainer, {"val/miracle_distance": distance})

    def distance(self, values: Mapping[str, float]) -> float:
        """0 at the targets."""
        return math.sqrt(sum(weight * self._excess(name, values[name]) ** 2 for name, weight in self.weights.items()))

    def _excess(self, name: str, value: float) -> float:
        if math.isnan(value):
            return math.nan
        r = math.log(max(value / self.targets[name], FLOOR))
        return max(r, 0.0) if name in self.one_sided else r
