"""The compiled loops choose and sum what the reference does: over densities, empty rows, ties, infinities and NaN."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from sae_lightning.kernels import cpu, memory, ops, reference, threads
from sae_lightning.latents import PreActivations
from tests.models.build import small

SHAPES = [(1, 1), (3, 5), (4, 16), (7, 33), (9, 100)]
DENSITIES = [0.0, 0.02, 0.3, 1.0]


def numbers(rows: int, columns: int, density: float, seed: int, ties: bool = False) -> torch.Tensor:
    """[rows, columns] of which about a share `density` is positive; whole numbers where `ties` are wanted."""
    g = torch.Generator().manual_seed(seed)
    h = torch.randint(1, 4, (rows, columns), generator=g).float() if ties else torch.rand(rows, columns, generator=g) + 0.1
    return torch.where(torch.rand(rows, columns, generator=g) < density, h, -h)


shapes, densities = st.sampled_from(SHAPES), st.sampled_from(DENSITIES)


@given(shapes, densities, st.integers(1, 40), st.booleans(), st.integers(0, 100))
def test_the_same_values_are_the_largest(shape: tuple[int, int], density: float, k: int, ties: bool, seed: int) -> None:
    h, k = numbers(*shape, density, seed, ties), min(k, shape[1])
    values, latents = cpu.top_k(h, k)
    wanted, _ = reference.top_k(h, k)
    assert_close(values.sort(1).values, wanted.sort(1).values, rtol=0, atol=0)
    assert_close(h.gather(1, latents).relu(), values, rtol=0, atol=0)
    assert all(len(set(row)) == k for row in latents.tolist()), "every latent once"


@given(shapes, densities, st.integers(0, 100))
def test_the_same_values_are_positive(shape: tuple[int, int], density: float, seed: int) -> None:
    h = numbers(*shape, density, seed)
    h[0, 0] = math.nan
    wanted = (h > 0).sum(0), (h > 0).sum(1)
    assert_close(cpu.positive(h), wanted)
    assert_close(reference.positive(h.repeat(300, 1)), (300 * wanted[0], wanted[1].repeat(300)))


@given(shapes, densities, st.integers(1, 40), st.booleans(), st.integers(0, 100))
def test_what_is_kept_in_place_is_what_is_chosen(shape: tuple[int, int], density: float, k: int, ties: bool, seed: int) -> None:
    h, k = numbers(*shape, density, seed, ties), min(k, shape[1])
    values, latents = cpu.top_k(h, k)
    assert_close(cpu.keep_top_k_(h.clone(), k), torch.zeros(shape).scatter(1, latents, values), rtol=0, atol=0)
    assert_close(reference.keep_top_k_(h.clone(), k).sort(1).values, cpu.keep_top_k_(h, k).sort(1).values, rtol=0, atol=0)


@given(shapes, st.integers(1, 40), st.integers(0, 100))
def test_of_equal_values_the_lower_latents_are_taken(shape: tuple[int, int], k: int, seed: int) -> None:
    h, k = numbers(*shape, 1.0, seed, ties=True), min(k, shape[1])
    for row, latents in zip(h.tolist(), cpu.top_k(h, k)[1].tolist(), strict=True):
        assert latents == sorted(sorted(range(len(row)), key=lambda j: (-row[j], j))[:k])


def test_what_a_row_chooses_does_not_depend_on_the_rows_before() -> None:
    h = torch.cat([torch.randn(20, 64), 100 * torch.randn(5, 64), 0.01 * torch.randn(5, 64), torch.zeros(2, 64), torch.randn(20, 64)])
    together = cpu.top_k(h, 6)
    for i in range(len(h)):
        alone = cpu.top_k(h[i : i + 1], 6)
        assert_close((together[0][i], together[1][i]), (alone[0][0], alone[1][0]), rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_nan_or_an_infinity_is_not_lost(wrong: float) -> None:
    h = torch.randn(6, 40)
    h[2, 7] = wrong
    values, latents = cpu.top_k(h, 4)
    assert 7 in latents[2].tolist()
    assert values[2].isfinite().sum() == 3
    chosen = cpu.above(h, torch.full((40,), 50.0), h.numel())
    assert chosen is not None
    assert chosen[1].tolist() == [2] and chosen[2].tolist() == [7]


@given(shapes, densities, st.booleans(), st.integers(0, 100))
def test_the_same_entries_are_above_a_threshold(shape: tuple[int, int], density: float, ties: bool, seed: int) -> None:
    h = numbers(*shape, density, seed, ties)
    threshold = torch.randint(0, 3, (shape[1],), generator=torch.Generator().manual_seed(seed)).float()
    wanted = reference.above(h, threshold, h.numel())
    assert_close(cpu.above(h, threshold, h.numel()), wanted, rtol=0, atol=0)
    assert wanted is not None
    n = len(wanted[0])
    for backend in (cpu, reference):
        assert backend.above(h, threshold, n) is not None
        assert n == 0 or backend.above(h, threshold, n - 1) is None


@given(shapes, densities, st.integers(0, 100))
def test_sums_and_products_are_the_same(shape: tuple[int, int], density: float, seed: int) -> None:
    """Of small whole numbers, which are exact in any order."""
    g = torch.Generator().manual_seed(seed)
    mask = numbers(*shape, density, seed) > 0
    rows, latents = (column.clone() for column in mask.nonzero(as_tuple=True))
    at = reference.Entries(rows, latents, mask.sum(1).cumsum(0) - mask.sum(1), shape[1])
    by = cpu.by_latent(at)
    assert_close(tuple(by), tuple(reference.by_latent(at)), rtol=0, atol=0)
    a, W = (torch.randint(-3, 4, (n, 6), generator=g).float() for n in shape)
    values = torch.randint(-3, 4, (len(rows),), generator=g).float()
    assert_close(cpu.weighted_sum(values, latents, W, at.offsets), reference.weighted_sum(values, latents, W, at.offsets), rtol=0, atol=0)
    in_order = values[by.order]
    assert_close(
        cpu.weighted_sum(in_order, by.rows, a, by.offsets), reference.weighted_sum(in_order, by.rows, a, by.offsets), rtol=0, atol=0
    )
    assert_close(cpu.products(a, W, at), reference.products(a, W, at), rtol=0, atol=0)


@given(shapes, densities, st.integers(1, 40), st.booleans(), st.integers(0, 100))
def test_tiles_of_a_table_change_nothing(shape: tuple[int, int], density: float, tile: int, in_order: bool, seed: int) -> None:
    """Whatever their size, and whether the entries of a bag ascend or not."""
    g = torch.Generator().manual_seed(seed)
    mask = numbers(*shape, density, seed) > 0
    rows, latents = (column.clone() for column in mask.nonzero(as_tuple=True))
    at = reference.Entries(rows, latents, mask.sum(1).cumsum(0) - mask.sum(1), shape[1])
    if not in_order:
        for begin, n in zip(at.offsets.tolist(), mask.sum(1).tolist(), strict=True):
            latents[begin : begin + n] = latents[begin : begin + n].flip(0)
    a, W = (torch.randint(-3, 4, (n, 6), generator=g).float() for n in shape)
    values = torch.randint(-3, 4, (len(rows),), generator=g).float()
    with mock.patch.object(cpu, "_tile", return_value=tile):
        sums, products = cpu.weighted_sum(values, latents, W, at.offsets), cpu.products(a, W, at)
    assert_close(sums, reference.weighted_sum(values, latents, W, at.offsets), rtol=0, atol=0)
    assert_close(products, reference.products(a, W, at), rtol=0, atol=0)


def test_only_tables_larger_than_the_cache_are_used_in_tiles() -> None:
    large, small, entries = torch.empty(5000, 1024), torch.empty(4000, 1024), 8 * 5
    assert cpu._tile(large, entries, 4) == 2048 == cpu.TILE_BYTES // 4096
    assert cpu._tile(large, entries // 2, 4) == 5000  # few entries: most tiles would be looked at for nothing
    assert cpu._tile(small, entries, 4) == 4000


def test_the_constraint_is_the_same() -> None:
    W, gradient = torch.randn(30, 7), torch.randn(30, 7)
    by_hand, own = gradient.clone(), gradient.clone()
    reference.project_(by_hand, W)
    cpu.project_(own, W)
    assert_close(own, by_hand, rtol=1e-5, atol=1e-6)
    W[3] = 0
    other = W.clone()
    reference.normalise_(W)
    cpu.normalise_(other)
    assert_close(other, W, rtol=1e-6, atol=1e-7)


def test_the_number_of_threads_changes_no_bit() -> None:
    h, W, threshold = torch.randn(50, 300), torch.randn(300, 20), torch.full((300,), 0.5)
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        chosen = cpu.above(h, threshold, h.numel())
        assert chosen is not None
        values, _, latents, offsets = chosen
        found.append((*cpu.top_k(h, 9), *chosen, cpu.weighted_sum(values, latents, W, offsets)))
    torch.set_num_threads(1)
    assert_close(found[1], found[0], rtol=0, atol=0)
    assert_close(found[2], found[0], rtol=0, atol=0)


def test_a_part_that_fails_is_heard_of() -> None:
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            threads.share(100, lambda first, last: 1 // 0)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("density", [0.001, 0.5, 1.0])
def test_entries_that_are_many_are_summed_as_a_matrix(density: float) -> None:
    """Above `DENSE_ABOVE` an operator makes a matrix of them: same numbers."""
    mask = numbers(40, 60, density, 0) > 0
    rows, latents = (column.clone() for column in mask.nonzero(as_tuple=True))
    at = reference.Entries(rows, latents, mask.sum(1).cumsum(0) - mask.sum(1), 60)
    a, W, values = torch.randn(40, 5), torch.randn(60, 5), torch.randn(len(rows))
    by = reference.by_latent(at)
    assert_close(ops.sum_by_row(values, W, *at[:3]), reference.weighted_sum(values, latents, W, at.offsets))
    assert_close(ops.sum_by_latent(values, a, latents, *by), reference.weighted_sum(values[by.order], by.rows, a, by.offsets))
    assert_close(ops.products(a, W, *at[:3]), reference.products(a, W, at))


def test_without_numba_everything_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "fast", lambda: None)
    assert ops.backend(torch.zeros(2)) is reference
    h = PreActivations.of(torch.randn(8, 4), torch.randn(7, 4), torch.zeros(7))
    assert h.top_k(3).l0_per_row().max() <= 3


def test_memory_is_used_again_when_nothing_refers_to_it() -> None:
    like = torch.empty(0)
    first = memory.empty((1024, 1024), like)
    view, at = first[5:], first.data_ptr()
    del first
    assert memory.empty((1024, 1024), like).data_ptr() != at, "a view is a reference"
    del view
    assert memory.empty((512, 2048), like).data_ptr() == at, "the size counts, not the shape"
    kept = [memory.empty((1024, 1024), like) for _ in range(20)]
    assert len({tensor.data_ptr() for tensor in kept}) == 20
    assert len(memory._kept) <= memory.MOST


def test_pre_activations_that_are_kept_are_not_overwritten() -> None:
    W, b = torch.randn(1024, 8), torch.zeros(1024)
    x = [torch.randn(512, 8) for _ in range(8)]
    every = [PreActivations.of(one, W, b).h for one in x]
    for one, h in zip(x, every, strict=True):
        assert_close(h, one @ W.T)


def test_a_batch_without_one_entry_has_zero_gradients() -> None:
    from sae_lightning.models.relu import ReLU

    sae = small(lambda dictionary: ReLU(dictionary, 0.1), sparse=True).float()
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(-100.0)
    x = torch.randn(6, 6)
    sae.step(x, x).loss.backward()
    assert_close(sae.dictionary.W_dec.grad, torch.zeros_like(sae.dictionary.W_dec))
    assert_close(sae.dictionary.W_enc.grad, torch.zeros_like(sae.dictionary.W_enc))


@pytest.mark.parametrize(("rows", "k", "bf16"), [(8, 3, False), (2500, 3, False), (2500, 9, False), (8, 9, True)])
def test_a_residual_explained_in_blocks_is_explained_as_a_whole(rows: int, k: int, bf16: bool) -> None:
    """More rows than a block, more latents asked for than there are, and pre-activations in half precision."""
    g = torch.Generator().manual_seed(0)
    made_of = [torch.randn(size, generator=g).requires_grad_() for size in ((20, 4), (20,), (20, 5), (4,))]
    W, b, W_dec, c = made_of
    x, e, dead = torch.randn(rows, 4, generator=g), torch.randn(rows, 5, generator=g), torch.arange(20) % 3 == 0
    found = []
    for sparse in (None, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total = PreActivations.of(x, W, b, sparse, c).unexplained(e, W_dec, k, dead)
        found.append([total, *torch.autograd.grad(total, made_of)])
    assert_close(found[0], found[1], rtol=1e-4, atol=1e-4 * float(found[1][0].detach()) / rows)
