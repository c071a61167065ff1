"""TopK (Gao et al. 2024, arXiv:2406.04093)."""

from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.kernels.squares import squared_error
from sae_lightning.models.auxk import no_revival
from sae_lightning.models.base import SAE, MakeDictionary, Revival, Step, Term


class TopK(SAE):
    """f = the k largest of relu(h) in each row (of a crosscoder: of relu(h_j) Σ_l ‖W_dec,j,l‖);   L = mean ‖y − ŷ‖² + revival.

    Errors: InputError when k is not between 1 and d_sae.
    """

    is_divisible = True

    def __init__(self, dictionary: MakeDictionary, k: int, revival: Revival | None = None):
        super().__init__()
        self.dictionary = dictionary(unit_norm=True)
        if not 1 <= k <= self.dictionary.d_sae:
            raise InputError(
                f"model.k is {k}, and the dictionary has {self.dictionary.d_sae} latents: choose 1 ≤ k ≤ {self.dictionary.d_sae}"
            )
        self.k, self.revival = k, revival or no_revival

    def step(self, x: Tensor, y: Tensor) -> Step:
        h = self.dictionary.encode(x)
        f = h.top_k(self.k, weight=self.dictionary.selection_weight())
        y_hat = self.dictionary.decode(f, x)
        loss, e = squared_error(y, y_hat)
        return Step(f, y_hat, {"reconstruction": Term(loss), **self.revival(self.dictionary, h, e)})

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(k=self.k)
