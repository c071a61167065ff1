"""Prefixes of a dictionary: their losses, the gradients that they share, and what cannot be."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.kernels.prefixes import prefix_errors
from sae_lightning.latents import Subset
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.matryoshka import Matryoshka
from sae_lightning.models.prefixes import GROUPS, group_ends
from tests.models.build import BATCH, D, F, gradients, rows, small
from tests.models.cases.matryoshka import CASES
from tests.models.test_golden import X, by_hand


@pytest.mark.parametrize("sparse", [True, False])
def test_by_hand(sparse: bool) -> None:
    """h = (3, 0.5), (0, 1.5): see test_golden.py. Two groups of one latent each."""
    sae = by_hand(lambda d: Matryoshka(d, 1.5, [0.5, 0.5]), sparse=sparse)
    step = sae.step(X, X)
    # first prefix: x̂ = (3, 0), (0, 0):  e² = 1, 4.   both: x̂ = (3.3, 0.4), (0.9, 1.2):  e² = 0.45, 1.45
    assert_close(step.losses["prefix_1"].value, torch.tensor(2.5))
    assert_close(step.losses["reconstruction"].value, torch.tensor(0.95))
    assert_close(step.loss, torch.tensor((2.5 + 0.95) / 2))
    assert_close(step.reconstruction, torch.tensor([[3.3, 0.4], [0.9, 1.2]]))
    step.loss.backward()
    # ∂L/∂W_dec,1 = −(2/2) · ½ Σ_m f_1 e_m = −½ · 3 · ((0, 1) + (−0.3, 0.6));  W_dec,2 gets the last prefix alone:
    # −½ · (0.5 · (−0.3, 0.6) + 1.5 · (−0.9, 0.8))
    assert_close(sae.dictionary.W_dec.grad, torch.tensor([[0.45, -2.4], [0.75, -0.75]]))
    sae.after_step_(step.sums)
    assert_close(sae.tau, torch.tensor(0.5))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_it_has_the_gradient_that_autograd_gives_its_equations(sparse: bool, skip: bool) -> None:
    x, sae = rows(), CASES["matryoshka, auxk"](sparse)
    if skip:
        sae.dictionary.W_skip = torch.nn.Parameter(torch.randn(D, D, dtype=torch.float64))
    got = gradients(sae, x)
    p = {name: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()}
    W, b, c, V = (p[f"dictionary.{name}"] for name in ("W_enc", "b_enc", "b_dec", "W_dec"))
    f = ((x - c) @ W.T + b).relu()
    dead = f * sae.dictionary.dead
    f = f * (f >= f.flatten().topk(int(3.3 * BATCH)).values[-1])
    more = x @ p["dictionary.W_skip"].T if skip else 0
    errors = [x - f[:, :end] @ V[:end] - c - more for end in (6, 12, 24)]
    residual = errors[-1].detach()
    e_hat = (dead * (dead >= dead.topk(2, dim=1).values[:, 1:])) @ V
    auxk = (e_hat - residual).square().sum() / (residual - residual.mean(0)).square().sum()
    loss = torch.stack([e.square().sum(1).mean() for e in errors]).mean() + 0.5 * auxk
    loss.backward()
    step = sae.step(x, x)
    assert_close(step.loss, loss)
    assert_close(step.reconstruction, x - errors[-1])
    assert_close(got, {name: value.grad for name, value in p.items()}, rtol=1e-10, atol=1e-12)


def test_the_reconstruction_has_a_gradient_of_its_own() -> None:
    """What a transformer makes of it may be a part of the loss."""
    found = []
    for sparse in (True, False):
        sae = CASES["matryoshka"](sparse)
        step = sae.step(rows(), rows())
        (step.loss + step.reconstruction.sin().sum()).backward()
        found.append({name: p.grad for name, p in sae.named_parameters()})
        sae.zero_grad()
        y_hat = sae.dictionary.decode(step.latents, rows())
        assert_close(step.reconstruction, y_hat)
        (sae.step(rows(), rows()).loss + sae.dictionary.decode(sae.step(rows(), rows()).latents, rows()).sin().sum()).backward()
        assert_close(found[-1], {name: p.grad for name, p in sae.named_parameters()}, rtol=1e-10, atol=1e-12)
    assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_the_operator_is_what_it_says() -> None:
    parts = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    squares, last, errors = prefix_errors(parts, target)
    wanted = target[:, None] - parts.cumsum(1)
    assert_close((squares, last, errors), (wanted.square().sum((0, 2)), wanted[:, -1], wanted))
    assert torch.autograd.gradcheck(lambda parts, target: prefix_errors(parts, target)[:2], (parts, target))
    torch.library.opcheck(prefix_errors, (parts, target), test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))


@pytest.mark.parametrize("ends", [[24], [1, 24], [3, 4, 11, 24], list(range(1, 25))])
def test_groups_are_decoded_alike_in_every_form(ends: list[int]) -> None:
    W = torch.randn(F, D, dtype=torch.float64)
    wanted, forms = None, []
    for sparse in (False, True):
        h = small(lambda dictionary: Matryoshka(dictionary, 3), sparse).dictionary.encode(rows())
        f, _ = h.top_k_of_batch(50)
        values = f.dense().detach()
        wanted = torch.stack([values[:, a:b] @ W[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)], 1)
        forms.append(f)
        with torch.no_grad():
            forms.append(h.top_k_of_batch(50)[0])
    latents = torch.arange(0, F, 3)
    forms.append(Subset(forms[0].dense()[:, latents], latents, F))
    for f in forms[:-1]:
        assert_close(f.decode_groups(W, ends), wanted)
    assert_close(forms[-1].decode_groups(W, ends).sum(1), forms[-1].decode(W))


def test_the_last_group_takes_what_is_left() -> None:
    assert group_ends(1024, GROUPS) == [32, 96, 224, 480, 1024]
    assert group_ends(100, GROUPS) == [3, 9, 21, 46, 100]
    assert group_ends(7, [1.0]) == [7]


@pytest.mark.parametrize(
    ("groups", "said"), [([], "sum to 1"), ([0.5, 0.6], "sum to 1"), ([1.5, -0.5], "positive"), ([0.01, 0.99], "every group needs one")]
)
def test_what_cannot_be_is_refused(groups: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Matryoshka(partial(Dictionary, Shape((4,), (4,)), d_sae=16), 2, groups)
