"""Every custom gradient in float64: against closed forms, against plain autograd, and the sparse form against the dense one."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sae_lightning.models.auxk import AuxK
from sae_lightning.models.relu import ReLU
from sae_lightning.models.topk import TopK
from tests import architectures
from tests.models.build import BATCH, D, F, cases, gradients, rows, small
from tests.models.cases.lagrangian import lagrangian

MODELS = cases()


def test_every_architecture_has_cases() -> None:
    assert {path.stem for path in (Path(__file__).parent / "cases").glob("*.py")} == set(architectures.MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_sparse_equals_dense(name: str) -> None:
    x = rows()
    sparse, dense = MODELS[name](True), MODELS[name](False)
    a, b = sparse.step(x, x), dense.step(x, x)
    assert_close(a.latents.dense(), b.latents.dense())
    assert_close({name: term.value for name, term in a.losses.items()}, {name: term.value for name, term in b.losses.items()})
    assert_close(gradients(sparse, x), gradients(dense, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("inequality", "dual", "target"), [*itertools.product([False, True], [-0.7, 0.9], [3.0, 20.0])])
def test_lagrangian_has_the_gradient_of_its_equations(inequality: bool, dual: float, target: float, sparse: bool) -> None:
    x, sae = rows(), lagrangian(sparse, dual, target, inequality=inequality)
    got = gradients(sae, x)
    d, theta, eps = sae.dictionary, sae.threshold.detach(), 0.5
    W, b, c, V = (p.detach() for p in (d.W_enc, d.b_enc, d.b_dec, d.W_dec))
    h = (x - c) @ W.T + b
    on, rect = (h > theta).double(), ((h - theta).abs() < eps / 2).double()
    assert (rect * (1 - on)).sum() > 5, "entries below θ inside the kernel must be among what is tested"
    e = x - (h * on) @ V - c
    v = on.sum() / BATCH / target - 1
    active = 1.0 if not inequality or v > 0 else 0.0
    v = v * active
    g = -2 / BATCH * e @ V.T  # ∂L_rec/∂f
    dv = (dual + 2 * 0.3 * v) * active / target / BATCH  # of one entry of the step function
    dh = g * on
    wanted = {
        "threshold": (-g * theta / eps * rect).sum(0) - dv / eps * rect.sum(0),
        "dictionary.W_dec": (h * on).T @ (-2 / BATCH * e),
        "dictionary.W_enc": dh.T @ (x - c),
        "dictionary.b_enc": dh.sum(0),
        "dictionary.b_dec": (-2 / BATCH * e).sum(0) - (dh @ W).sum(0),
    }
    assert_close(got, {name: wanted[name] for name in got}, rtol=1e-10, atol=1e-12)
    assert_close(sae.step(x, x).loss.detach(), e.square().sum(1).mean() + dual * v + 0.3 * v**2)


def _top(values: Tensor, k: int) -> Tensor:
    best = values.topk(k, dim=1)
    return torch.zeros_like(values).scatter(1, best.indices, best.values)


@pytest.mark.parametrize("sparse", [True, False])
def test_topk_with_auxk_has_the_gradient_that_autograd_gives_its_equations(sparse: bool) -> None:
    x, sae = rows(), MODELS["topk, auxk"](sparse)
    got = gradients(sae, x)
    p = {name: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()}
    W, b, c, V = (p[f"dictionary.{name}"] for name in ("W_enc", "b_enc", "b_dec", "W_dec"))
    f = ((x - c) @ W.T + b).relu()
    e = x - _top(f, 3) @ V - c
    residual = e.detach()
    e_hat = _top(f * sae.dictionary.dead, 2) @ V
    auxk = (e_hat - residual).square().sum() / (residual - residual.mean(0)).square().sum()
    loss = e.square().sum(1).mean() + 0.5 * auxk
    loss.backward()
    assert_close(sae.step(x, x).loss, loss)
    assert_close(got, {name: value.grad for name, value in p.items()}, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("sparse", "unit_norm"), [*itertools.product([True, False], [True, False])])
def test_relu_has_the_gradient_that_autograd_gives_its_equations(sparse: bool, unit_norm: bool) -> None:
    x, sae = rows(), small(lambda dictionary: ReLU(dictionary, 0.125, unit_norm=unit_norm), sparse)
    got = gradients(sae, x)
    p = {name: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()}
    W, b, c, V = (p[f"dictionary.{name}"] for name in ("W_enc", "b_enc", "b_dec", "W_dec"))
    f = ((x - c) @ W.T + b).relu()
    weight = torch.ones(F) if unit_norm else V.norm(dim=1)
    ((x - f @ V - c).square().sum(1).mean() + 0.125 * (f * weight).sum(1).mean()).backward()
    assert_close(got, {name: value.grad for name, value in p.items()}, rtol=1e-10, atol=1e-12)


def test_auxk_reaches_dead_latents_alone_and_not_the_bias() -> None:
    x, sae = rows(), MODELS["topk, auxk"](True)
    sae.step(x, x).losses["auxk"].value.backward()
    d = sae.dictionary
    moved = d.W_enc.grad.norm(dim=1) > 0
    assert (moved & d.dead).sum() >= 2
    assert not (moved & ~d.dead).any()
    assert not ((d.W_dec.grad.norm(dim=1) > 0) & ~d.dead).any()
    assert d.b_enc.grad is not None
    assert_close(d.b_dec.grad, -(d.b_enc.grad @ d.W_enc))  # through the encoder's centring only: the residual is detached


def test_auxk_is_zero_where_nothing_is_dead_or_nothing_varies() -> None:
    sae = MODELS["topk, auxk"](True)
    x = rows()[:1].repeat(4, 1)
    assert sae.step(x, x).losses["auxk"].value == 0
    sae.dictionary.rows_since_fired.zero_()
    assert sae.step(rows(), rows()).losses["auxk"].value == 0


@pytest.mark.parametrize("k", [1, 3, 6])
def test_auxk_with_fewer_dead_latents_than_k_uses_those(k: int) -> None:
    """Four latents of 24 are dead: a k above that changes nothing."""
    x, sae = rows(), small(lambda dictionary: TopK(dictionary, 3, AuxK(k)))
    sae.dictionary.rows_since_fired[10:] = 0
    f = (sae.dictionary.encode(x).h.relu() * sae.dictionary.dead).topk(min(k, 1)).values
    e_hat = sae.dictionary.encode(x).top_k(k, among=sae.dictionary.dead)
    assert_close(e_hat.dense().sum(1), f.sum(1))


@pytest.mark.parametrize("name", MODELS)
def test_a_step_changes_no_state(name: str) -> None:
    sae = MODELS[name](None)
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    gradients(sae, rows())
    assert_close(sae.state_dict(), before, rtol=0, atol=0)


def test_the_gradient_reaches_a_row_that_asks_for_it() -> None:
    sae = MODELS["lagrangian"](True)
    x = rows().requires_grad_()
    sae.step(x, x.detach()).loss.backward()
    dense, again = MODELS["lagrangian"](False), rows().requires_grad_()
    dense.step(again, again.detach()).loss.backward()
    assert x.grad is not None
    assert x.shape == (BATCH, D)
    assert_close(x.grad, again.grad, rtol=1e-10, atol=1e-12)
