"""Whether thresholds can learn, and L0 can be held: of architectures that have a threshold per latent."""

import logging
from collections import deque
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from sae_lightning.curves import log_values
from sae_lightning.models.base import SAE
from sae_lightning.module import SAEModule

ROWS = 256
"""Rows of a batch that kernels are counted on."""
PATIENCE = 3
"""Logged steps in a row after which what is wrong is said."""
RECENT = 10
"""Logged steps whose mean is the L0 in training."""
log = logging.getLogger(__name__)


class Health(L.Callback):
    """Live numbers of an SAE with `threshold` θ [d_sae] and kernel `width` ε (`lagrangian.Lagrangian`); nothing is done for any other.

        kernel_occupancy    rows per latent and optimizer step with |h − θ| < ε/2: what a threshold learns from
        threshold_at_0      share of θ at 0, which cannot fall further;   threshold_min, _mean, _max of θ, where rows have E‖x‖² = 1
        violation           (running L0 − L0*)/L0*, where the architecture keeps a running L0
        dual_at_bound       1 where |α| is `dual_max` (with a `dual`), else 0
        l0_gap              L0 in training (mean of the last logged steps) minus L0 on held-out rows, as exported; at validation

    Logged in the architecture's group (lagrangian/kernel_occupancy) at steps that are logged; other steps cost nothing. Said once in a
    run, with what to change: an occupancy below 1, more than half of θ at 0, a dual at its bound while the violation points outward
    (each for three logged steps in a row); and at the end a gap above 5 % of L0, or a held-out L0 more than 5 % from `target_l0`.
    """

    def __init__(self):
        self.l0: deque[float] = deque(maxlen=RECENT)
        self.in_a_row: dict[str, int] = {}
        self.said: list[str] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        sae = pl_module.sae
        if pl_module.last is None or pl_module.sums or not has_thresholds(sae):
            return
        rows, l0 = float(pl_module.step_sums["rows"]), _l0(pl_module)
        self.l0.append(l0)
        theta = sae.dictionary.shards.whole(_tensor(sae, "threshold").detach())
        values = {"threshold_at_0": float((theta <= 0).float().mean())}
        values |= {"threshold_min": float(theta.min()), "threshold_mean": float(theta.mean()), "threshold_max": float(theta.max())}
        values["kernel_occupancy"] = occupancy(sae, pl_module.scaled(pl_module.last[0]).x[:ROWS]) * rows
        self._persists("occupancy", values["kernel_occupancy"] < 1,
            f"kernel occupancy is {values['kernel_occupancy']:.2g} rows per latent and step, and thresholds learn from those alone: "
            "raise data.batch_size or model.bandwidth")  # fmt: skip
        self._persists("zero", values["threshold_at_0"] > 0.5,
            f"{values['threshold_at_0']:.0%} of the thresholds are at 0, and cannot fall further to let more latents fire: "
            "ask for a lower L0, or raise dictionary.expansion_factor")  # fmt: skip
        target = target_l0(sae)
        if target is not None and hasattr(sae, "running_l0"):
            values["violation"] = float(_tensor(sae, "running_l0")) / target - 1
        if target is not None and hasattr(sae, "dual") and hasattr(sae, "dual_max"):
            dual, most = float(_tensor(sae, "dual")), float(sae.dual_max)  # type: ignore[arg-type]
            values["dual_at_bound"] = float(abs(dual) >= most)
            self._persists("dual", abs(dual) >= most and (l0 - target) * dual > 0,
                f"the dual is at its bound of {most:g} and L0 is {l0:.3g}, still not at its target of {target:.3g}: "
                "raise model.dual_max or model.rho")  # fmt: skip
        log_values(trainer, {f"{sae.architecture}/{name}": value for name, value in values.items()})

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        # Before the module's own hook, which resets the metrics. Every rank asks for them.
        sae = pl_module.sae
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not has_thresholds(sae):
            return
        found = pl_module.metrics.compute().get("l0")
        if found is None or not self.l0:
            return
        held_out, training = float(found), sum(self.l0) / len(self.l0)
        log_values(trainer, {f"{sae.architecture}/l0_gap": training - held_out})
        if trainer.global_step < trainer.max_steps:
            return
        if abs(training - held_out) > 0.05 * held_out:
            self._say("gap", f"L0 is {training:.3g} in training and {held_out:.3g} on held-out rows: give the data more rows, lower "
                      "optimizer.lr, or train with trainer.precision=32-true")  # fmt: skip
        target = target_l0(sae)
        off = 0.0 if target is None else held_out / target - 1
        if abs(off) > 0.05 and not (off < 0 and getattr(sae, "inequality", False)):
            knobs = "model.rho or model.dual_rate" if hasattr(sae, "dual") else "the weight of its penalty"
            self._say("target", f"held-out L0 is {held_out:.3g} at the end, {abs(off):.0%} {'above' if off > 0 else 'below'} its target of "
                      f"{target:.3g}: raise trainer.max_steps or {knobs}")  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"l0": list(self.l0), "in_a_row": dict(self.in_a_row), "said": list(self.said)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.l0 = deque(state_dict["l0"], maxlen=RECENT)
        self.in_a_row, self.said = dict(state_dict["in_a_row"]), list(state_dict["said"])

    def _persists(self, name: str, is_bad: bool, message: str) -> None:
        self.in_a_row[name] = self.in_a_row.get(name, 0) + 1 if is_bad else 0
        if self.in_a_row[name] == PATIENCE:
            self._say(name, message)

    def _say(self, name: str, message: str) -> None:
        if name not in self.said:
            self.said.append(name)
            _warn(message)


@rank_zero_only
def _warn(message: str) -> None:
    log.warning(message)


def has_thresholds(sae: SAE) -> bool:
    """Whether an SAE has a threshold per latent that learns through a kernel."""
    threshold = getattr(sae, "threshold", None)
    return isinstance(threshold, Tensor) and len(threshold) == len(sae.dictionary.b_enc) and isinstance(getattr(sae, "width", None), Tensor)


def target_l0(sae: SAE) -> float | None:
    """What L0 is asked to be, where the architecture can be asked."""
    target = getattr(sae, "target_l0", None)
    return None if target is None else float(target)


@torch.no_grad()
def occupancy(sae: SAE, x: Tensor) -> float:
    """The mean over latents of the share of the rows x (in scaled units) with |h − θ| < ε/2."""
    h = sae.dictionary.encode(x).h
    near = ((h - _tensor(sae, "threshold")).abs_() < _tensor(sae, "width") / 2).float().mean(0)
    return float(sae.dictionary.total(near.sum())) / sae.dictionary.d_sae


def _tensor(sae: SAE, name: str) -> Tensor:
    value = getattr(sae, name)
    assert isinstance(value, Tensor)
    return value


def _l0(module: SAEModule) -> float:
    return float(module.sae.dictionary.total(module.step_sums["fires"].sum()) / module.step_sums["rows"])
