"""What an SAE must beat: the same evaluations of things that were not trained. Autoencoders only (y is x)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae_lightning.data.rows import RowsDataModule, generator
from sae_lightning.inference import InferenceSAE

ROWS = 32_768


def pca(data: RowsDataModule, k: int) -> InferenceSAE:
    """The k principal components v of training rows, each as two latents: relu(v·(x − mean)) and relu(−v·(x − mean)).

    L0 is k, and no linear reconstruction from k numbers is better. k is cut to the width of a row.
    """
    x = data.sample(ROWS, seed=1).x.double()
    mean = x.mean(0)
    centred = x - mean
    components = torch.linalg.eigh(centred.T @ centred).eigenvectors.T.flip(0)[:k]  # eigenvalues come in ascending order
    both = torch.cat([components, -components]).float()
    return _untrained("pca", both, both, mean.float(), threshold=torch.zeros(len(both)))


def random_dictionary(data: RowsDataModule, d_sae: int, k: int) -> InferenceSAE:
    """d_sae random unit directions, encoder tied to decoder, the k largest of relu(h) active.

    One number is fitted: the length of reconstructions (least squares), which overlapping directions would get wrong.
    """
    x = data.sample(ROWS, seed=1).x
    directions = F.normalize(torch.randn(d_sae, x.shape[1], generator=generator(0, "random dictionary")), dim=1)
    mean = x.mean(0)
    raw = _untrained("random_dictionary", directions, directions, mean, k=k)
    product = square = 0.0
    for rows in x.split(1024):
        y_hat = raw(rows) - mean
        product, square = product + float((y_hat * (rows - mean)).sum()), square + float(y_hat.square().sum())
    return _untrained("random_dictionary", directions, directions * (product / square if square else 1.0), mean, k=k)


def _untrained(name: str, W_enc: Float[Tensor, "d_sae d"], W_dec: Float[Tensor, "d_sae d"], mean: Float[Tensor, " d"], *,
               k: int | None = None, threshold: Tensor | None = None) -> InferenceSAE:  # fmt: skip
    weights = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": W_enc.new_zeros(len(W_enc)), "b_dec": mean}
    if threshold is not None:
        weights["threshold"] = threshold
    return InferenceSAE(weights, subtract=True, k=k, about={"architecture": name})
