"""The neuron basis."""

import torch
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.kernels.squares import squared_error
from sae_lightning.models.base import SAE, MakeDictionary, Step, Term
from sae_lightning.models.null.untrained import untrained


class Identity(SAE):
    """Each dimension of a row as two latents, relu(x_i − mean_i) and relu(mean_i − x_i); the k largest of a row are active.

    So a row of width d is given by its k coordinates that are furthest from their mean, the others are at their mean: the neuron basis
    at the L0 of what it is compared with (all d coordinates would be no test: they explain everything). There are 2d latents, whatever
    size the dictionary was asked to have. Nothing is trained. Errors: InputError for a k that is not between 1 and d.
    """

    def __init__(self, dictionary: MakeDictionary, k: int):
        super().__init__()
        self.dictionary = untrained(dictionary(expansion_factor=2, d_sae=None))
        d = self.dictionary.shape.d_in
        if not 1 <= k <= d:
            raise InputError(f"model.k is {k}, and rows are {d} wide: choose 1 ≤ k ≤ {d}")
        self.k = k

    def step(self, x: Tensor, y: Tensor) -> Step:
        f = self.dictionary.encode(x).top_k(self.k)
        y_hat = self.dictionary.decode(f, x)
        return Step(f, y_hat, {"reconstruction": Term(squared_error(y, y_hat)[0])})

    @torch.no_grad()
    def calibrate_(self, x: Tensor) -> None:
        d = self.dictionary
        axes = torch.eye(d.shape.d_in)
        for weight in (d.W_enc, d.W_dec):
            weight.copy_(torch.cat([axes, -axes]))
        d.b_dec.copy_(x.mean(0))

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(k=self.k)
