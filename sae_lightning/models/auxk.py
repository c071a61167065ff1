"""Dead latents are asked to explain the residual (Gao et al. 2024, arXiv:2406.04093, A.2)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.latents import PreActivations
from sae_lightning.models.base import Term
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.ranks import mean_over_ranks


class AuxK:
    """auxk = Σ‖ê − e‖² / Σ‖e − mean e‖²,   ê = the k largest relu(h) of dead latents · W_dec.

    The residual e is detached and the sums are over the global batch; 0 where nothing is dead or the residual does not vary.
    `k`: None is half the width of a row; `coefficient`: the weight of the term. Its gradient reaches encoder and decoder rows of dead
    latents only; it cannot revive a latent whose h is negative on every row.
    """

    def __init__(self, k: int | None = None, coefficient: float = 1 / 32):
        if k is not None and k < 1:
            raise InputError(f"model.revival.k is {k}: give a positive number of dead latents per row, or null for half the width of a row")
        if coefficient < 0:
            raise InputError(f"model.revival.coefficient is {coefficient}: it must not be negative")
        self.k, self.coefficient = k, coefficient

    def __call__(self, dictionary: Dictionary, h: PreActivations, residual: Float[Tensor, "batch d_out"]) -> Mapping[str, Term]:
        dead, any_dead = dictionary.dead, dictionary.any_dead()
        if not torch.compiler.is_compiling() and not dead.is_cuda and not any_dead:  # a GPU would have to be waited for
            return {"auxk": Term(residual.new_zeros(()), self.coefficient)}
        e = residual.detach()
        k = min(self.k or max(1, e.shape[1] // 2), dictionary.d_sae)
        variance = mean_over_ranks(torch.linalg.vector_norm(e, dim=1).square().mean()) - mean_over_ranks(e.mean(0)).square().sum()
        share = h.unexplained(e, dictionary.W_dec, k, among=dead) / len(e) / variance.clamp(min=1e-30)
        return {"auxk": Term(share * (any_dead & (variance > 0)), self.coefficient)}


def no_revival(dictionary: Dictionary, h: PreActivations, residual: Float[Tensor, "batch d_out"]) -> Mapping[str, Term]:
    """Dead latents are left alone."""
    return {}
