"""Same weights and rows in, same terms and gradients out, as dictionary_learning, SAELens and sparsify.

Reductions: ours, dictionary_learning's and SAELens' reconstruction loss are Σ over d, mean over rows; sparsify's is that over the mean
variance of a row, Σ over d. The penalties of dictionary_learning are logged plain, those of SAELens times their coefficient.
Where they are not comparable, test_exclusions.py shows who is right.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.models.auxk import AuxK
from sae_lightning.models.base import SAE
from sae_lightning.models.batch_topk import BatchTopK
from sae_lightning.models.gated import Gated
from sae_lightning.models.jumprelu import JumpReLU
from sae_lightning.models.p_anneal import PAnneal
from sae_lightning.models.relu import ReLU
from sae_lightning.models.topk import TopK
from tests.oracles.make_golden import BANDWIDTH, SPARSITY, TANH, K
from tests.oracles.parity import ROUNDING, golden, ours, problem, same_gradients, steps


class Parity(NamedTuple):
    library: str
    case: str
    make: Callable[..., SAE]
    terms: dict[str, tuple[str, float]]
    """Their term → (ours, what its plain value is multiplied with)."""
    set_up: Mapping[str, Any] = MappingProxyType({})
    """For `ours`."""


DL, LENS = "dictionary_learning", "sae_lens"
JUMPS = {"free": True, "width": BANDWIDTH}
MSE, RECONSTRUCTION = {"mse_loss": ("reconstruction", 1.0)}, {"l2_loss": ("reconstruction", 1.0)}
L0 = MSE | {"l0_loss": ("sparsity", SPARSITY)}
CASES = [
    Parity(DL, "topk", lambda d: TopK(d, K), RECONSTRUCTION),
    Parity(DL, "topk, auxk", lambda d: TopK(d, K, AuxK()), RECONSTRUCTION | {"auxk_loss": ("auxk", 1)}, {"dead": True}),
    Parity(DL, "batch_topk", lambda d: BatchTopK(d, K), RECONSTRUCTION),
    Parity(DL, "batch_topk, auxk", lambda d: BatchTopK(d, K, AuxK()), RECONSTRUCTION | {"auxk_loss": ("auxk", 1)}, {"dead": True}),
    Parity(DL, "relu", lambda d: ReLU(d, SPARSITY), MSE | {"sparsity_loss": ("sparsity", 1)}, {"free": True}),
    Parity(DL, "relu, unit norm", lambda d: ReLU(d, SPARSITY, unit_norm=True), MSE | {"sparsity_loss": ("sparsity", 1)}),
    Parity(LENS, "topk", lambda d: TopK(d, K), MSE),
    Parity(LENS, "batch_topk", lambda d: BatchTopK(d, K), MSE),
    Parity(LENS, "relu", lambda d: ReLU(d, SPARSITY), MSE | {"l1_loss": ("sparsity", SPARSITY)}, {"free": True}),
    Parity(DL, "gated", lambda d: Gated(d, SPARSITY), MSE | {"sparsity_loss": ("sparsity", 1), "aux_loss": ("auxiliary", 1)}, {"gate": True}),
    Parity(DL, "p_anneal, p 1", lambda d: PAnneal(d, SPARSITY), {"lp_loss": ("sparsity", 1), "scaled_lp_loss": ("sparsity", SPARSITY)}),
    Parity(DL, "jumprelu, no penalty", lambda d: JumpReLU(d, "target", K, 0.0), RECONSTRUCTION, JUMPS),
    Parity(LENS, "jumprelu, l0", lambda d: JumpReLU(d, "l0", None, SPARSITY), L0, JUMPS),
    Parity(LENS, "jumprelu, tanh", lambda d: JumpReLU(d, "tanh", None, SPARSITY, tanh_scale=TANH), L0, JUMPS),
    Parity(
        LENS, "jumprelu, threshold term", lambda d: JumpReLU(d, "l0", None, SPARSITY, threshold_revival=0.1),
        L0 | {"pre_act_loss": ("dead_thresholds", 0.1)}, JUMPS | {"dead": True},
    ),
]  # fmt: skip


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("parity", CASES, ids=lambda parity: f"{parity.library}: {parity.case}")
def test_terms_and_gradients_are_theirs(parity: Parity, sparse: bool) -> None:
    theirs = golden(parity.library, parity.case)
    step, gradients = steps(ours(parity.make, sparse=sparse, **parity.set_up))
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


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_the_annealed_penalty_is_theirs_but_for_its_smoothing(sparse: bool) -> None:
    """Σ f^p for them; Σ (f + 1e-6)^p − 1e-6^p for us, whose slope at f = 0 is finite: 1e-6^p less for each active latent. Of the latents that
    are not dead, none is so small that the slope differs by a hundredth."""
    theirs, p = golden(DL, "p_anneal, p 0.5"), 0.5
    step, gradients = steps(ours(lambda d: PAnneal(d, SPARSITY), sparse=sparse, p=p))
    l0 = step.latents.l0_per_row().double().mean()
    assert_close(step.losses["sparsity"].value + 1e-6**p * l0, theirs["term.lp_loss"], rtol=1e-4, atol=0.0)
    alive = problem()["dead"] == 0
    for name in ("W_enc", "W_dec", "b_enc"):
        assert_close(gradients[name][alive], theirs[f"grad.{name}"][alive], rtol=1e-2, atol=1e-5)
