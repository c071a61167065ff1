"""Principal components: no linear reconstruction from k numbers is better."""

import torch
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.kernels.squares import squared_error
from sae_lightning.models.base import SAE, MakeDictionary, Step, Term
from sae_lightning.models.null.untrained import untrained


class PCA(SAE):
    """The k principal components v of the rows, each as two latents: f = relu(v·(x − mean)) and relu(−v·(x − mean)).

    L0 is k on every row, and the reconstruction is the projection on the first k components. There are 2k latents, whatever size the
    dictionary was asked to have. Nothing is trained. Errors: InputError for a k that is not between 1 and the width of a row.
    """

    def __init__(self, dictionary: MakeDictionary, k: int):
        super().__init__()
        if k < 1:
            raise InputError(f"model.k is {k}: give a positive number of components")
        self.dictionary = untrained(dictionary(expansion_factor=None, d_sae=2 * k))
        self.k = k
        if k > self.dictionary.shape.d_in:
            raise InputError(f"model.k is {k}, and rows are {self.dictionary.shape.d_in} wide: they have no more components than that")

    def step(self, x: Tensor, y: Tensor) -> Step:
        f = self.dictionary.encode(x).above(0.0).relu()
        y_hat = self.dictionary.decode(f, x)
        return Step(f, y_hat, {"reconstruction": Term(squared_error(y, y_hat)[0])})

    @torch.no_grad()
    def calibrate_(self, x: Tensor) -> None:
        d, rows = self.dictionary, x.double()
        centred = rows - rows.mean(0)
        components = torch.linalg.eigh(centred.T @ centred).eigenvectors.T.flip(0)[: self.k]  # eigenvalues come in ascending order
        both = torch.cat([components, -components])
        for weight, value in ((d.W_enc, both), (d.W_dec, both), (d.b_dec, rows.mean(0))):
            weight.copy_(value)

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(threshold=torch.zeros_like(self.dictionary.b_enc))
