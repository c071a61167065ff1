"""Sparse sums against dense ones: densities from nothing to everything, empty rows, latents that never occur, repeated values."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from sae_lightning.kernels import reference as kernels
from sae_lightning.latents import Dense, PreActivations, Sparse

ROWS, LATENTS, D = 5, 7, 4


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    bits = draw(st.lists(st.booleans(), min_size=ROWS * LATENTS, max_size=ROWS * LATENTS))
    return torch.tensor(bits).view(ROWS, LATENTS)


def entries(mask: torch.Tensor) -> kernels.Entries:
    rows, latents = mask.nonzero(as_tuple=True)
    per_row = mask.sum(1)
    return kernels.Entries(rows, latents, per_row.cumsum(0) - per_row, LATENTS)


@given(masks(), st.integers(0, 1000))
def test_decoding_and_its_gradients_equal_the_dense_ones(mask: torch.Tensor, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    f = torch.randint(-2, 3, (ROWS, LATENTS), generator=g).double() * mask  # small whole numbers: many ties, some zeros
    W = torch.randn(LATENTS, D, generator=g, dtype=torch.float64)
    out = torch.randn(ROWS, D, generator=g, dtype=torch.float64)
    at = entries(mask)
    values, sparse_W = f[mask].requires_grad_(), W.clone().requires_grad_()
    sparse = Sparse(values, at)
    (sparse.decode(sparse_W) * out).sum().backward()
    dense_f, dense_W = f.clone().requires_grad_(), W.clone().requires_grad_()
    (Dense(dense_f).decode(dense_W) * out).sum().backward()
    assert_close(values.grad, dense_f.grad[mask])
    assert_close(sparse_W.grad, dense_W.grad)
    for same in ("fires", "l0_per_row", "sum_per_latent", "dense"):
        assert_close(getattr(sparse, same)().detach(), getattr(Dense(f), same)())


@given(st.integers(0, 1000), st.floats(-2, 2))
def test_what_is_above_a_threshold_has_one_gradient_in_both_forms(seed: int, threshold: float) -> None:
    g = torch.Generator().manual_seed(seed)
    x, W, b = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((ROWS, D), (LATENTS, D), (LATENTS,)))
    found = []
    for sparse in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, W, b)]
        chosen = PreActivations.of(*leaves, sparse=sparse).above(threshold)
        f = chosen.with_values(chosen.values * (chosen.values > threshold))
        f.dense().square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    assert_close(found[0], found[1])


@given(st.integers(0, 1000), st.integers(1, LATENTS))
def test_the_k_largest_have_one_gradient_in_both_forms(seed: int, k: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, W, b = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((ROWS, D), (LATENTS, D), (LATENTS,)))
    found = []
    for sparse in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, W, b)]
        f = PreActivations.of(*leaves, sparse=sparse).top_k(k)
        assert f.l0_per_row().max() <= k
        f.dense().square().sum().backward()
        found.append([f.dense(), *(leaf.grad for leaf in leaves)])
    assert_close(found[0], found[1])
    dense = torch.addmm(b, x, W.T).relu()
    assert_close(found[0][0].sum(1).detach(), dense.topk(k).values.sum(1))


def test_the_order_of_a_sum_is_the_same_every_time() -> None:
    mask = torch.rand(300, 40) < 0.3
    rows, latents = mask.nonzero(as_tuple=True)
    at = kernels.Entries(rows, latents, mask.sum(1).cumsum(0) - mask.sum(1), 40)
    first = kernels.by_latent(at)
    assert (first.rows[1:] >= first.rows[:-1])[latents[first.order][1:] == latents[first.order][:-1]].all()  # stable
    assert_close(kernels.by_latent(at).order, first.order, rtol=0, atol=0)


def test_bfloat16_pre_activations_give_float32_values() -> None:
    x, W, b = torch.randn(8, D), torch.randn(LATENTS, D), torch.zeros(LATENTS)
    with torch.autocast("cpu", torch.bfloat16):
        h = PreActivations.of(x, W, b)
    assert h.h.dtype == torch.bfloat16
    assert h.top_k(2).values.dtype == torch.float32
    assert h.above(0.0).values.dtype == torch.float32


def test_an_unusually_dense_batch_is_handled_in_the_dense_form() -> None:
    h = PreActivations.of(torch.randn(8, D), torch.randn(LATENTS, D), torch.zeros(LATENTS))
    assert isinstance(h.above(-100.0), Dense)
    assert isinstance(h.above(100.0), Sparse)
    assert_close(h.above(100.0).decode(torch.randn(LATENTS, D)), torch.zeros(8, D))
