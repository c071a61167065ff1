"""L0 as a constraint, held by dual ascent, for architectures with one learned threshold per latent (equations: `lagrangian.Lagrangian`)."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.latents import Latents, PreActivations
from sae_lightning.models.base import Term
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.straight_through import heaviside, jump_relu
from sae_lightning.ranks import mean_over_ranks


def check_constraint(
    d_sae: int, target_l0: float, *, rho: float, dual_rate: float, dual_max: float, momentum: float, bandwidth: float
) -> None:
    """Errors: InputError for a target outside (0, d_sae), a negative constant, a momentum outside [0, 1), a bandwidth that is not positive."""
    if not 0 < target_l0 < d_sae:
        raise InputError(f"model.target_l0 is {target_l0}, and the dictionary has {d_sae} latents: choose 0 < target_l0 < {d_sae}")
    for name, value in {"rho": rho, "dual_rate": dual_rate, "dual_max": dual_max}.items():
        if value < 0:
            raise InputError(f"model.{name} is {value}: it must not be negative")
    if not 0 <= momentum < 1 or bandwidth <= 0:
        raise InputError(f"model.momentum must be in [0, 1) and model.bandwidth positive, got {momentum} and {bandwidth}")


def constrained(
    dictionary: Dictionary,
    h: PreActivations,
    threshold: Float[Tensor, " d_sae"],
    width: Float[Tensor, ""],
    target: Float[Tensor, ""],
    inequality: bool,
) -> tuple[Latents, Float[Tensor, ""]]:
    """f = h ⟦h > θ⟧ and v = (mean Σ_j ⟦h_j > θ_j⟧ − L0*) / L0* over all ranks (`inequality`: its positive part), through a kernel of that width."""
    near = h.above((threshold - width / 2).detach())
    theta = near.at(threshold)
    v = mean_over_ranks(dictionary.total(heaviside(near.values, theta, width).sum()) / len(h.h)) / target - 1
    return near.with_values(jump_relu(near.values, theta, width)), v.relu() if inequality else v


def constraint_terms(v: Float[Tensor, ""], dual: Float[Tensor, ""], rho: float) -> dict[str, Term]:
    """α v + ρ v²."""
    return {"constraint": Term(v, dual), "penalty": Term(v.square(), rho)}


def ascend_(
    dictionary: Dictionary, dual: Float[Tensor, ""], running_l0: Float[Tensor, ""], target: Float[Tensor, ""], sums: Mapping[str, Tensor],
    *, momentum: float, rate: float, most: float, inequality: bool, absolute: bool,
) -> None:  # fmt: skip
    """m ← β m + (1 − β) mean L0,   α ← clamp(α + η c),   c = (m − L0*)/L0*  (`absolute`: m − L0*);   α in [−most, most], inequality: [0, most]."""
    running_l0.lerp_((dictionary.total(sums["fires"].sum()) / sums["rows"]).to(running_l0), 1 - momentum)
    excess = running_l0 - target
    dual.add_(rate * (excess if absolute else excess / target))
    dual.clamp_(0 if inequality else -most, most)
