"""What any set of as many directions explains."""

import torch
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.kernels.squares import squared_error
from sae_lightning.models.base import SAE, MakeDictionary, Step, Term
from sae_lightning.models.null.untrained import untrained


class RandomDictionary(SAE):
    """d_sae random unit directions w, encoder tied to decoder: f = the k largest of relu(w·(x − mean)) in each row.

    One number is fitted: the length of reconstructions (least squares), which overlapping directions would get wrong. Nothing is
    trained. Errors: InputError when k is not between 1 and d_sae.
    """

    def __init__(self, dictionary: MakeDictionary, k: int):
        super().__init__()
        self.dictionary = untrained(dictionary(unit_norm=False, init_norm=1.0))
        if not 1 <= k <= self.dictionary.d_sae:
            raise InputError(
                f"model.k is {k}, and the dictionary has {self.dictionary.d_sae} latents: choose 1 ≤ k ≤ {self.dictionary.d_sae}"
            )
        self.k = k

    def step(self, x: Tensor, y: Tensor) -> Step:
        f = self.dictionary.encode(x).top_k(self.k)
        y_hat = self.dictionary.decode(f, x)
        return Step(f, y_hat, {"reconstruction": Term(squared_error(y, y_hat)[0])})

    @torch.no_grad()
    def calibrate_(self, x: Tensor) -> None:
        d = self.dictionary
        d.b_dec.copy_(x.mean(0))
        d.W_dec.copy_(d.W_enc)
        product = square = 0.0
        for rows in x.split(1024):
            guess = d.encode(rows).top_k(self.k).decode(d.W_dec)
            product, square = product + float((guess * (rows - d.b_dec)).sum()), square + float(guess.square().sum())
        d.W_dec.mul_(product / square if square else 1.0)

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(k=self.k)
