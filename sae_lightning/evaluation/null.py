"""What an SAE must beat: the null models of sae_lightning/models/null, at its L0. Autoencoders only (y is x)."""

from collections.abc import Callable
from functools import partial

import torch

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.inference import InferenceSAE
from sae_lightning.models.base import SAE
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.null.identity import Identity
from sae_lightning.models.null.pca import PCA
from sae_lightning.models.null.random_dictionary import RandomDictionary

ROWS = 32_768


def pca(data: RowsDataModule, k: int) -> InferenceSAE:
    """k is cut to the width of a row."""
    return _fitted(PCA, data, min(k, data.shape.d_in))


def identity(data: RowsDataModule, k: int) -> InferenceSAE:
    """k is cut to the width of a row."""
    return _fitted(Identity, data, min(k, data.shape.d_in))


def random_dictionary(data: RowsDataModule, d_sae: int, k: int) -> InferenceSAE:
    """The same directions each time."""
    return _fitted(RandomDictionary, data, k, d_sae)


def _fitted(make: Callable[..., SAE], data: RowsDataModule, k: int, d_sae: int | None = None) -> InferenceSAE:
    """On training rows in raw space, which none of them takes for another than the scaled one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sae = make(partial(Dictionary, data.shape, d_sae=d_sae), k)
    sae.calibrate_(data.sample(ROWS, seed=1).x)
    made = sae.to_inference()
    made.about["architecture"] = sae.architecture
    return made
