"""Gated against its equations, in float64; its export is the same function."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.gated import Gated
from sae_lightning.models.start import start_from_
from tests.models.build import BATCH, D, F, gradients, rows
from tests.models.cases.gated import gated


@pytest.mark.parametrize("sparse", [True, False])
def test_it_has_the_gradient_of_its_equations(sparse: bool) -> None:
    """In the usual parameters: one encoder without a bias, b_gate and b_mag, and a decoder that the auxiliary term does not train."""
    x, sae = rows(), gated(sparse)
    got = gradients(sae, x)
    p = {name: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()}
    W, b_gate, c, V = (p[f"dictionary.{name}"] for name in ("W_enc", "b_enc", "b_dec", "W_dec"))
    z = (x - c) @ W.T
    pi = z + b_gate
    magnitude = p["r_mag"].exp() * z + p["b_mag"]
    f = (pi > 0) * magnitude.relu()
    assert ((pi > 0) & (magnitude < 0)).sum() > 5, "gates that are open on nothing must be among what is tested"
    reconstruction = (x - f @ V - c).square().sum(1).mean()
    auxiliary = (x - pi.relu() @ V.detach() - c.detach()).square().sum(1).mean()
    l1 = pi.relu().sum() / BATCH
    (reconstruction + auxiliary + 0.125 * l1).backward()
    step = sae.step(x, x)
    assert_close(step.latents.dense(), f)
    assert_close([step.losses[name].value for name in ("reconstruction", "auxiliary", "sparsity")], [reconstruction, auxiliary, l1])
    assert_close(got, {name: value.grad for name, value in p.items()}, rtol=1e-10, atol=1e-12)


def test_the_auxiliary_term_does_not_train_the_decoder() -> None:
    x, sae = rows(), gated()
    sae.step(x, x).losses["auxiliary"].value.backward()
    d = sae.dictionary
    assert d.W_dec.grad is None
    assert d.b_enc.grad is not None
    assert d.W_enc.grad.abs().sum() > 0
    assert_close(d.b_dec.grad, -(d.b_enc.grad @ d.W_enc))  # through the encoder's centring only


@pytest.mark.parametrize("sparse", [True, False])
def test_a_skip_connection_is_part_of_both_reconstructions(sparse: bool) -> None:
    x, sae = rows(), gated(sparse)
    sae.dictionary.W_skip = torch.nn.Parameter(0.1 * torch.randn(D, D, dtype=torch.float64))
    step = sae.step(x, x)
    d, f = sae.dictionary, sae.dictionary.encode(x).h.relu()
    frozen = f @ d.W_dec + d.b_dec + x @ d.W_skip.T
    assert_close(step.losses["auxiliary"].value, (x - frozen).square().sum(1).mean())
    step.losses["auxiliary"].value.backward()
    assert d.W_skip.grad is None


def test_its_export_is_the_same_function_also_where_gate_and_magnitude_disagree() -> None:
    sae, x = gated(), torch.randn(4096, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exported, step = sae.to_inference(), sae.step(x, x)
    d = sae.dictionary
    gate = d.encode(x).h
    magnitude = sae.r_mag.exp() * (gate - d.b_enc) + sae.b_mag
    for one, other in [(gate, magnitude), (magnitude, gate)]:
        assert ((one > 0) & (other < 0)).any()
    assert exported.threshold is not None
    assert (exported.threshold > 0).any()
    assert (exported.threshold == 0).any()
    assert_close(exported.encode(x).dense(), step.latents.dense())
    assert ((exported.encode(x).dense() > 0) == (step.latents.dense() > 0)).all()
    assert_close(exported(x), step.reconstruction)


def test_it_starts_from_an_exported_one_as_the_same_function() -> None:
    old = gated().to_inference()
    new = Gated(partial(Dictionary, Shape((D,), (D,)), d_sae=F), 0.1).double()
    x = rows()
    start_from_(new, old, x)
    assert_close(new.to_inference()(x), old(x))
    assert_close(new.step(x, x).reconstruction, old(x))


def test_gate_parameters_of_the_revived_are_zero() -> None:
    sae = gated()
    kept = sae.r_mag[5].clone()
    sae.after_revival_(torch.tensor([2, 3]), torch.ones(F, dtype=torch.bool))
    assert sae.r_mag[[2, 3]].abs().max() == sae.b_mag[[2, 3]].abs().max() == 0
    assert_close(sae.r_mag[5], kept)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.sparsity"):
        Gated(partial(Dictionary, Shape((D,), (D,)), d_sae=F), -0.1)
