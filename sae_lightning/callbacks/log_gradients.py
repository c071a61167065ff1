"""Gradients and weights as numbers."""

from collections.abc import Mapping

import lightning as L
import torch
from torch import Tensor

from sae_lightning.callbacks.frequency import check_period, is_due
from sae_lightning.curves import log_values
from sae_lightning.module import SAEModule
from sae_lightning.shards import Shards

NOTHING: Mapping[str, Shards] = {}


class LogGradients(L.Callback):
    """Of each matrix and vector w that is trained (its name: W_enc, b_dec, …), and of all together, over all ranks:

        gradients/<w>_norm, _mean, _std, _max      of its gradient g as the optimizer would step on it without clipping: ‖g‖, mean,
                                                   standard deviation (over n), max |g|
        gradients/norm, mean, std, max             of all entries together
        gradients/<w>_norm_clipped, norm_clipped   the norm that was stepped on
        parameters/<w>_norm, parameters/norm       ‖w‖ after the step

    Rows are scaled inside (E‖x‖² = 1), and gradients are of that. Every `every_n_steps` optimizer steps; None: at those that are
    logged. Errors: InputError for a period below 1.
    """

    def __init__(self, every_n_steps: int | None = None):
        self.period = check_period(every_n_steps, "log_gradients")
        self.values: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: SAEModule, stage: str) -> None:
        def look() -> None:
            if is_due(self.period, trainer, trainer.global_step + 1):
                self.values = statistics(_gradients(pl_module), _cut(pl_module))

        pl_module.before_clipping = [*pl_module.before_clipping, look]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: SAEModule, outputs: object, batch: object, batch_idx: int) -> None:
        if pl_module.sums or not is_due(self.period, trainer, trainer.global_step):
            return
        # Gradients are still those of the step: Lightning forgets them before the next backward pass.
        cut = _cut(pl_module)
        values = self.values | {f"gradients/{name}_clipped": norm for name, norm in norms(_gradients(pl_module), cut).items()}
        log_values(trainer, values | {f"parameters/{name}": norm for name, norm in norms(_trained(pl_module), cut).items()})


@torch.no_grad()
def statistics(tensors: Mapping[str, Tensor], cut: Mapping[str, Shards] = NOTHING) -> dict[str, float]:
    """gradients/<name>_norm, _mean, _std and _max of each, and gradients/norm, mean, std and max of all entries together.

    `cut`: those of which other processes have other parts.
    """
    if not tensors:
        return {}
    sums = torch.stack([_sums(tensor, cut.get(name)) for name, tensor in tensors.items()]).cpu()
    rows = [len(tensor) if name not in cut else cut[name].d_sae for name, tensor in tensors.items()]
    n = torch.tensor([of * tensor[0].numel() for of, tensor in zip(rows, tensors.values(), strict=True)], dtype=torch.float64)
    names = [f"{name}_" for name in tensors] + [""]
    total, squares = (torch.cat([column, column.sum()[None]]) for column in sums[:, :2].T)
    largest, n = torch.cat([sums[:, 2], sums[:, 2].amax()[None]]), torch.cat([n, n.sum()[None]])
    mean = total / n
    found = {"norm": squares.sqrt(), "mean": mean, "std": (squares / n - mean.square()).clamp(min=0).sqrt(), "max": largest}
    return {f"gradients/{name}{what}": float(value) for what, values in found.items() for name, value in zip(names, values, strict=True)}


@torch.no_grad()
def norms(tensors: Mapping[str, Tensor], cut: Mapping[str, Shards] = NOTHING) -> dict[str, float]:
    """<name>_norm of each, and norm of all together."""
    if not tensors:
        return {}
    each = torch.stack([_sums(tensor, cut.get(name))[1].sqrt() for name, tensor in tensors.items()]).cpu()
    return {f"{name}_norm": float(norm) for name, norm in zip(tensors, each, strict=True)} | {"norm": float(torch.linalg.vector_norm(each))}


def _sums(tensor: Tensor, parts: Shards | None) -> Tensor:
    """Σ, Σ of squares and max of the absolute values, of all parts."""
    tensor = tensor.float()
    sums = torch.stack([tensor.sum(), torch.linalg.vector_norm(tensor).square(), torch.linalg.vector_norm(tensor, torch.inf)]).double()
    return sums if parts is None else torch.cat([parts.total(sums[:2]), parts.largest(sums[2:])])


def _cut(module: SAEModule) -> dict[str, Shards]:
    """By the same names, what is divided among processes."""
    shards = module.sae.dictionary.shards
    return {name.rpartition(".")[2]: shards for name in module.sae.of_latents()} if shards.parts > 1 else {}


def _trained(module: SAEModule) -> dict[str, Tensor]:
    """By the last word of their names, which no two share."""
    return {name.rpartition(".")[2]: parameter.detach() for name, parameter in module.sae.named_parameters() if parameter.requires_grad}


def _gradients(module: SAEModule) -> dict[str, Tensor]:
    named = {name.rpartition(".")[2]: parameter.grad for name, parameter in module.sae.named_parameters()}
    return {name: gradient.detach() for name, gradient in named.items() if gradient is not None}
