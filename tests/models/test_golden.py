"""Two latents on rows of width two, worked out by hand.

x = (3, 1), (0, 2)      W_enc = (1, 0), (0, 1)      W_dec = (1, 0), (0.6, 0.8)      b_enc = (0, −0.5)      b_dec = (0, 0)
h = (3, 0.5), (0, 1.5)
"""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.lagrangian import Lagrangian
from sae_lightning.models.relu import ReLU
from sae_lightning.models.topk import TopK

X = torch.tensor([[3.0, 1.0], [0.0, 2.0]])


def by_hand(make, **dictionary):
    sae = make(partial(Dictionary, Shape((2,), (2,)), d_sae=2, **dictionary))
    d = sae.dictionary
    with torch.no_grad():
        d.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        d.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
        d.b_enc.copy_(torch.tensor([0.0, -0.5]))
    return sae


@pytest.mark.parametrize("sparse", [True, False])
def test_topk(sparse: bool) -> None:
    step = by_hand(lambda d: TopK(d, 1), sparse=sparse).step(X, X)
    assert_close(step.latents.dense(), torch.tensor([[3.0, 0.0], [0.0, 1.5]]))
    assert_close(step.reconstruction, torch.tensor([[3.0, 0.0], [0.9, 1.2]]))
    # e = (0, 1), (−0.9, 0.8):  (1 + 0.81 + 0.64) / 2
    assert_close(step.loss, torch.tensor(1.225))


@pytest.mark.parametrize("sparse", [True, False])
def test_relu(sparse: bool) -> None:
    sae = by_hand(lambda d: ReLU(d, 0.1), sparse=sparse)
    with torch.no_grad():
        sae.dictionary.W_dec[1] *= 2  # ‖W_dec‖ = (1, 2)
    step = sae.step(X, X)
    assert_close(step.latents.dense(), torch.tensor([[3.0, 0.5], [0.0, 1.5]]))
    # x̂ = (3.6, 0.8), (1.8, 2.4):  e² = 0.36 + 0.04, 3.24 + 0.16;  mean 1.9
    assert_close(step.losses["reconstruction"].value, torch.tensor(1.9))
    # (3·1 + 0.5·2 + 1.5·2) / 2
    assert_close(step.losses["sparsity"].value, torch.tensor(3.5))
    assert_close(step.loss, torch.tensor(2.25))


@pytest.mark.parametrize("sparse", [True, False])
def test_lagrangian(sparse: bool) -> None:
    sae = by_hand(lambda d: Lagrangian(d, 0.5, rho=0.2, dual_rate=0.1, momentum=0.5), sparse=sparse)
    with torch.no_grad():
        sae.threshold.copy_(torch.tensor([1.0, 1.0]))
        sae.dual.fill_(0.4)
        sae.width.fill_(1.2)  # the kernel is θ ± 0.6
    step = sae.step(X, X)
    assert_close(step.latents.dense().detach(), torch.tensor([[3.0, 0.0], [0.0, 1.5]]))
    # L0 = 1;  v = (1 − 0.5) / 0.5 = 1;  L = 1.225 + 0.4·1 + 0.2·1²
    assert_close(step.losses["constraint"].value, torch.tensor(1.0))
    assert_close(step.loss, torch.tensor(1.825))
    step.loss.backward()
    # latent 1: h = 3, 0 — neither within 0.6 of 1.  latent 2: h = 0.5, 1.5 — both.
    # ∂L_rec/∂f = −(2/2) e·W_dec:  row 1: −(0·0.6 + 1·0.8) = −0.8;  row 2: −(−0.9·0.6 + 0.8·0.8) = −0.1
    # jump:        (−0.8 − 0.1) · (−θ/ε) = 0.9 / 1.2 = 0.75
    # constraint:  (0.4 + 2·0.2·1) / 0.5 / 2 = 0.8 an entry, two entries, times −1/1.2: −1.3333
    assert_close(sae.threshold.grad, torch.tensor([0.0, 0.75 - 1.6 / 1.2]))
    # m ← 0.5·0.5 + 0.5·1 = 0.75;  α ← 0.4 + 0.1·(0.75 − 0.5)/0.5 = 0.45
    sae.after_step_({"fires": torch.tensor([1, 1]), "rows": torch.tensor(2)})
    assert_close(sae.running_l0, torch.tensor(0.75))
    assert_close(sae.dual, torch.tensor(0.45))


def test_lagrangian_absolute_and_bounds() -> None:
    sums = {"fires": torch.tensor([2, 2]), "rows": torch.tensor(2)}
    sae = by_hand(lambda d: Lagrangian(d, 0.5, absolute=True, dual_rate=0.1, momentum=0.0))
    sae.after_step_(sums)
    assert_close(sae.dual, torch.tensor(0.15))  # 0.1 · (2 − 0.5)
    sae = by_hand(lambda d: Lagrangian(d, 0.5, dual_rate=1.0, dual_max=0.3, momentum=0.0))
    sae.after_step_(sums)
    assert_close(sae.dual, torch.tensor(0.3))
    sae = by_hand(lambda d: Lagrangian(d, 1.5, inequality=True, momentum=0.0))
    sae.after_step_({"fires": torch.tensor([0, 0]), "rows": torch.tensor(2)})
    assert_close(sae.dual, torch.tensor(0.0))  # L0 below the bound: nothing to pay
