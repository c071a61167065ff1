"""Ghost gradients (Jermyn & Templeton 2024, "Ghost Grads: An improvement on resampling", Transformer Circuits)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.latents import PreActivations
from sae_lightning.models.base import Term
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.ranks import mean_over_ranks


class GhostGrads:
    """ghost = ‖s ĝ − e‖² · sg(mean ‖e‖² / itself),   ĝ = Σ_{j dead} exp(h_j) W_dec,j,   s = sg(‖e‖ / (2 ‖ĝ‖)) row by row.

    The residual e and both factors are detached; the second is of the global batch. So the term is as large as the reconstruction
    error, and its gradient reaches encoder and decoder rows of dead latents only, those with h < 0 on every row among them. exp cannot
    overflow: s takes back whatever is subtracted from all h of a row. 0 where nothing is dead. `coefficient`: the weight of the term.
    Errors: InputError for a negative one.
    """

    def __init__(self, coefficient: float = 1.0):
        if coefficient < 0:
            raise InputError(f"model.revival.coefficient is {coefficient}: it must not be negative")
        self.coefficient = coefficient

    def __call__(self, dictionary: Dictionary, h: PreActivations, residual: Float[Tensor, "batch d_out"]) -> Mapping[str, Term]:
        dead, e = dictionary.dead, residual.detach()
        any_dead = dictionary.any_dead()
        if not torch.compiler.is_compiling() and not dead.is_cuda and not any_dead:  # a GPU would have to be waited for
            return {"ghost_grads": Term(e.new_zeros(()), self.coefficient)}
        ghosts = replace(h, x=h.x.detach(), b_dec=None).all_of(dead)
        rows = ghosts.values.view(len(e), -1)
        lowest = torch.finfo(rows.dtype).min
        largest = F.pad(rows.detach(), (0, 1), value=lowest).amax(1, keepdim=True)  # a row of nothing has a maximum, too
        largest = dictionary.shards.largest(largest)
        g = dictionary.total(ghosts.with_values((rows - largest).exp().view_as(ghosts.values)).decode(dictionary.W_dec))
        g = g * (e.norm(dim=1, keepdim=True) / (2 * g.detach().norm(dim=1, keepdim=True)).clamp(min=1e-30))
        distance, error = (g - e).square().sum(1).mean(), mean_over_ranks(e.square().sum(1).mean())
        share = error / mean_over_ranks(distance.detach()).clamp(min=1e-30)
        return {"ghost_grads": Term(distance * share * any_dead, self.coefficient)}
