"""Ghost gradients against their equations, and what they reach."""

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.errors import InputError
from sae_lightning.models.ghost_grads import GhostGrads
from sae_lightning.models.topk import TopK
from tests.models.build import gradients, rows, small


def ghostly(sparse: bool | None, coefficient: float = 0.5) -> TopK:
    sae = small(lambda dictionary: TopK(dictionary, 3, GhostGrads(coefficient)), sparse)
    assert isinstance(sae, TopK)
    return sae


@pytest.mark.parametrize("sparse", [True, False, None])
def test_the_gradient_is_that_of_the_equations_with_both_factors_held(sparse: bool | None) -> None:
    x, sae = rows(), ghostly(sparse)
    got = gradients(sae, x)
    rest = gradients(ghostly(sparse, 0.0), x)
    d = sae.dictionary
    W, b, V = (p.detach().clone().requires_grad_() for p in (d.W_enc, d.b_enc, d.W_dec))
    e = (x - sae.step(x, x).reconstruction).detach()
    g = (((x - d.b_dec.detach()) @ W.T + b).exp() * d.dead) @ V
    g = g * (e.norm(dim=1, keepdim=True) / (2 * g.norm(dim=1, keepdim=True))).detach()
    distance = (g - e).square().sum(1).mean()
    loss = 0.5 * distance * (e.square().sum(1).mean() / distance).detach()
    loss.backward()
    for name, parameter in {"W_enc": W, "b_enc": b, "W_dec": V}.items():
        assert_close(got[f"dictionary.{name}"] - rest[f"dictionary.{name}"], parameter.grad, rtol=1e-9, atol=1e-11)
    assert_close(got["dictionary.b_dec"], rest["dictionary.b_dec"], rtol=0, atol=0)
    assert_close(sae.step(x, x).losses["ghost_grads"].value, e.square().sum(1).mean())


def test_a_factor_that_is_not_held_is_another_gradient() -> None:
    """What the comparison above would find: with the second factor on the tape the term is constant, and its gradient 0."""
    x, sae = rows(), ghostly(None)
    sae.zero_grad()
    sae.step(x, x).losses["ghost_grads"].value.backward()
    assert sae.dictionary.W_enc.grad.abs().max() > 1e-3


@pytest.mark.parametrize("sparse", [True, False])
def test_it_reaches_dead_latents_alone_and_those_below_zero_everywhere(sparse: bool) -> None:
    x, sae = rows(), ghostly(sparse)
    d = sae.dictionary
    with torch.no_grad():
        d.b_enc[d.dead] = -50.0
    sae.zero_grad()
    sae.step(x, x).losses["ghost_grads"].value.backward()
    assert d.b_dec.grad is None or d.b_dec.grad.abs().max() == 0
    for parameter in (d.W_enc, d.W_dec):
        assert ((parameter.grad.norm(dim=1) > 0) == d.dead).all()


@pytest.mark.parametrize("sparse", [True, False])
def test_large_pre_activations_do_not_overflow(sparse: bool) -> None:
    """Only differences within a row count: 1000 more in every h changes nothing."""
    x, sae = rows().float(), ghostly(sparse).float()
    before = gradients(sae, x)
    with torch.no_grad():
        sae.dictionary.b_enc[sae.dictionary.dead] += 1000.0
    step = sae.step(x, x)
    sae.zero_grad()
    step.losses["ghost_grads"].value.backward()
    assert torch.isfinite(step.losses["ghost_grads"].value)
    assert torch.isfinite(sae.dictionary.W_enc.grad).all()
    assert set(before) == {name for name, _ in sae.named_parameters()}


@pytest.mark.parametrize("sparse", [True, False, None])
def test_it_is_zero_where_nothing_is_dead(sparse: bool | None) -> None:
    sae = ghostly(sparse)
    sae.dictionary.rows_since_fired.zero_()
    assert sae.step(rows(), rows()).losses["ghost_grads"].value == 0


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.revival\.coefficient"):
        GhostGrads(-1.0)
