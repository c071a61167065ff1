"""Prefixes with a constraint: the gradient of its equations, by hand, and what cannot be."""

import itertools
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.matryoshka_lagrangian import MatryoshkaLagrangian
from tests.models.build import BATCH, gradients, rows
from tests.models.cases.matryoshka_lagrangian import matryoshka_lagrangian
from tests.models.test_golden import X, by_hand


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("inequality", "dual", "target"), [*itertools.product([False, True], [-0.7, 0.9], [3.0, 20.0])])
def test_it_has_the_gradient_of_its_equations(inequality: bool, dual: float, target: float, sparse: bool) -> None:
    x, sae = rows(), matryoshka_lagrangian(sparse, dual, target, inequality=inequality)
    got = gradients(sae, x)
    d, theta, eps = sae.dictionary, sae.threshold.detach(), 0.5
    W, b, c, V = (p.detach() for p in (d.W_enc, d.b_enc, d.b_dec, d.W_dec))
    h = (x - c) @ W.T + b
    on, rect = (h > theta).double(), ((h - theta).abs() < eps / 2).double()
    f = h * on
    errors = [x - f[:, :end] @ V[:end] - c for end in (6, 12, 24)]
    v = on.sum() / BATCH / target - 1
    active = 1.0 if not inequality or v > 0 else 0.0
    v = v * active
    share, g, dV = -2 / BATCH / 3, torch.zeros_like(h), torch.zeros_like(V)  # of ∂L_rec/∂ŷ_m; ∂L_rec/∂f; ∂L_rec/∂W_dec
    for e, end in zip(errors, (6, 12, 24), strict=True):
        g[:, :end] += share * e @ V[:end].T
        dV[:end] += share * f[:, :end].T @ e
    dv = (dual + 2 * 0.3 * v) * active / target / BATCH
    dh = g * on
    wanted = {
        "threshold": (-g * theta / eps * rect).sum(0) - dv / eps * rect.sum(0),
        "dictionary.W_dec": dV,
        "dictionary.W_enc": dh.T @ (x - c),
        "dictionary.b_enc": dh.sum(0),
        "dictionary.b_dec": share * torch.stack(errors).sum((0, 1)) - (dh @ W).sum(0),
    }
    assert_close(got, {name: wanted[name] for name in got}, rtol=1e-10, atol=1e-12)
    loss = torch.stack(errors).square().sum(2).mean() + dual * v + 0.3 * v**2
    assert_close(sae.step(x, x).loss.detach(), loss)


@pytest.mark.parametrize("sparse", [True, False])
def test_by_hand(sparse: bool) -> None:
    """h = (3, 0.5), (0, 1.5): see test_golden.py. Two groups of one latent each."""
    sae = by_hand(lambda d: MatryoshkaLagrangian(d, 0.5, groups=[0.5, 0.5], rho=0.2, dual_rate=0.1, momentum=0.5), sparse=sparse)
    with torch.no_grad():
        sae.threshold.fill_(1.0)
        sae.dual.fill_(0.4)
        sae.width.fill_(1.2)  # the kernel is θ ± 0.6
    step = sae.step(X, X)
    # f = (3, 0), (0, 1.5).  first prefix: e = (0, 1), (0, 2).  both: e = (0, 1), (−0.9, 0.8):  (5/2 + 2.45/2) / 2;  v = 1
    assert_close(step.loss, torch.tensor(1.8625 + 0.4 + 0.2))
    step.loss.backward()
    # latent 2, in the kernel in both rows, is in the last prefix alone: half of Lagrangian's jump, all of its constraint
    # (test_golden.py: 0.75 − 1.3333)
    assert_close(sae.threshold.grad, torch.tensor([0.0, 0.75 / 2 - 1.6 / 1.2]))
    sae.after_step_({"fires": torch.tensor([1, 1]), "rows": torch.tensor(2)})
    assert_close(sae.running_l0, torch.tensor(0.75))
    assert_close(sae.dual, torch.tensor(0.45))


def test_revived_thresholds_are_typical() -> None:
    sae = matryoshka_lagrangian()
    alive = torch.arange(24) >= 10
    sae.after_revival_(torch.tensor([3, 5]), alive)
    assert_close(sae.threshold[[3, 5]], sae.threshold[alive].median().expand(2))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"target_l0": 128}, "target_l0"), ({"rho": -1.0}, "rho"), ({"bandwidth": 0.0}, "bandwidth"), ({"groups": [0.5]}, "groups")],
)
def test_what_cannot_be_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        MatryoshkaLagrangian(partial(Dictionary, Shape((4,), (4,)), d_sae=128), **{"target_l0": 4, **wrong})
