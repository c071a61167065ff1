"""Same weights and rows in, same terms and gradients out, as dictionary_learning, SAELens and sparsify.

Reductions: ours, dictionary_learning's and SAELens' reconstruction loss are Σ over d, mean over rows; sparsify's is that over the mean
variance of a row, Σ over d. The penalties of dictionary_learning are logged plain, those of SAELens times their coefficient.
Where they are not comparable (definitions §6), test_exclusions.py shows who is right.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.models.auxk import AuxK
from sae_lightning.models.base import SAE
from sae_lightning.models.batch_topk import BatchTopK
from sae_lightning.models.relu import ReLU
from sae_lightning.models.topk import TopK
from tests.oracles.make_golden import SPARSITY, K
from tests.oracles.parity import ROUNDING, golden, ours, problem, same_gradients, steps


class Parity(NamedTuple):
    library: str
    case: str
    make: Callable[..., SAE]
    terms: dict[str, tuple[str, float]]
    """Their term → (ours, what its plain value is multiplied with)."""
    free: bool = False
    dead: bool = False


DL, LENS = "dictionary_learning", "sae_lens"
CASES = [
    Parity(DL, "topk", lambda d: TopK(d, K), {"l2_loss": ("reconstruction", 1)}),
    Parity(DL, "topk, auxk", lambda d: TopK(d, K, AuxK()), {"l2_loss": ("reconstruction", 1), "auxk_loss": ("auxk", 1)}, dead=True),
    Parity(DL, "batch_topk", lambda d: BatchTopK(d, K), {"l2_loss": ("reconstruction", 1)}),
    Parity(DL, "batch_topk, auxk", lambda d: BatchTopK(d, K, AuxK()), {"l2_loss": ("reconstruction", 1), "auxk_loss": ("auxk", 1)}, dead=True),
    Parity(DL, "relu", lambda d: ReLU(d, SPARSITY), {"mse_loss": ("reconstruction", 1), "sparsity_loss": ("sparsity", 1)}, free=True),
    Parity(DL, "relu, unit norm", lambda d: ReLU(d, SPARSITY, unit_norm=True), {"mse_loss": ("reconstruction", 1), "sparsity_loss": ("sparsity", 1)}),
    Parity(LENS, "topk", lambda d: TopK(d, K), {"mse_loss": ("reconstruction", 1)}),
    Parity(LENS, "batch_topk", lambda d: BatchTopK(d, K), {"mse_loss": ("reconstruction", 1)}),
    Parity(LENS, "relu", lambda d: ReLU(d, SPARSITY), {"mse_loss": ("reconstruction", 1), "l1_loss": ("sparsity", SPARSITY)}, free=True),
]  # fmt: skip


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("parity", CASES, ids=lambda parity: f"{parity.library}: {parity.case}")
def test_terms_and_gradients_are_theirs(parity: Parity, sparse: bool) -> None:
    theirs = golden(parity.library, parity.case)
    step, gradients = steps(ours(parity.make, free=parity.free, dead=parity.dead, sparse=sparse))
    for name, (our_name, weight) in parity.terms.items():
        assert_close(weight * step.losses[our_name].value, theirs[f"term.{name}"], **ROUNDING)
    assert_close(step.loss, theirs["loss"], **ROUNDING)
    same_gradients(gradients, theirs)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_sparsifys_fraction_of_variance_is_our_loss_in_other_units(sparse: bool) -> None:
    theirs, x = golden("sparsify", "topk"), problem()["x"]
    step, gradients = steps(ours(lambda d: TopK(d, K), sparse=sparse))
    variance = (x - x.mean(0)).square().sum(1).mean()
    assert_close(step.losses["reconstruction"].value / variance, theirs["term.fvu"], **ROUNDING)
    same_gradients(gradients, theirs, 1 / variance)


def test_the_smallest_latent_of_the_batch_is_theirs() -> None:
    """dictionary_learning's τ starts at it, as ours does; SAELens' moves a hundredth of the way from 0 to it."""
    sae = ours(lambda d: BatchTopK(d, K))
    step, _ = steps(sae)
    sae.after_step_({"rows": torch.tensor(16), "fires": step.latents.fires(), **step.sums})
    tau = sae.get_buffer("tau").double()
    assert_close(tau, golden(DL, "batch_topk")["term.tau"], **ROUNDING)
    assert_close(0.01 * tau, golden(LENS, "batch_topk")["term.topk_threshold"], **ROUNDING)
