"""Dead latents are drawn towards their thresholds (Conerly et al. 2025, "Dictionary Learning Optimization Techniques", the pre-activation loss)."""

from jaxtyping import Float
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.latents import PreActivations
from sae_lightning.models.base import Term
from sae_lightning.models.dictionary import Dictionary


def check_weight(weight: float) -> None:
    """Errors: InputError for a negative one."""
    if weight < 0:
        raise InputError(f"model.threshold_revival is {weight}: it must not be negative")


def dead_thresholds(dictionary: Dictionary, h: PreActivations, threshold: Float[Tensor, " d_sae"], weight: float) -> dict[str, Term]:
    """mean over rows of Σ_{j dead} relu(θ_j − h_j) ‖W_dec,j‖, with its gradient to θ, W_enc, b_enc and W_dec; no term for a weight of 0.

    The published weight 3e-6 belongs to rows of E‖x‖² = d and a squared error summed over d: there this term grows by √d and the error
    by d, so that the same weight for rows of E‖x‖² = 1 is 3e-6/√d.
    """
    if not weight:
        return {}
    below = h.all_of(dictionary.dead)
    distance = ((below.at(threshold) - below.values).relu() * below.at(dictionary.norms())).sum() / len(h.x)
    return {"dead_thresholds": Term(dictionary.total(distance), weight)}
