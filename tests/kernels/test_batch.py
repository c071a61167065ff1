"""The largest entries of a batch are those that sorting all of it would give, whatever the sample suggests, on one rank or two."""

import math
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from sae_lightning.kernels import batch, cpu, ops, reference
from tests.kernels.test_backends import numbers

SHAPES = [(1, 1), (3, 5), (7, 33), (16, 300), (40, 129)]
DENSITIES = [0.0, 0.02, 0.3, 1.0]
KINDS = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DENSITIES), st.booleans(), st.integers(0, 100))


def by_sorting(h: torch.Tensor, n: int, weight: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Values, rows, latents, offsets, smallest."""
    keys = h if weight is None else h * weight
    keys = torch.where(keys.isnan(), math.inf, keys).flatten()
    order = keys.sort(descending=True, stable=True).indices[:n]
    order = order[keys[order] > 0].sort().values
    rows, latents = order // h.shape[1], order % h.shape[1]
    per_row = torch.bincount(rows, minlength=len(h))
    return h[rows, latents], rows, latents, per_row.cumsum(0) - per_row, keys[order].min() if len(order) else torch.zeros(())


@given(KINDS, st.integers(1, 400), st.booleans(), st.sampled_from(["as it is", "sample always", "far too high", "NaN"]))
def test_they_are_those_that_sorting_gives(kind: tuple[tuple[int, int], float, bool, int], n: int, weighted: bool, bound: str) -> None:
    shape, density, ties, seed = kind
    h = numbers(*shape, density, seed, ties)
    weight = torch.randint(0, 4, (shape[1],), generator=torch.Generator().manual_seed(seed)) / 3 if weighted else None
    wanted = by_sorting(h, n, weight)
    with pytest.MonkeyPatch.context() as patch:
        if bound == "sample always":
            patch.setattr(batch, "SAMPLE_FROM", 0)
            patch.setattr(batch, "BLOCKS", 4)
        if bound == "far too high":  # at the first two looks
            patch.setattr(batch, "_bound", lambda h, weight, n, margin: h.new_tensor(0.0 if margin == math.inf else 1e30))
        if bound == "NaN":
            h[0, 0] = math.nan
            wanted = by_sorting(h, n, weight)
        for backend in (cpu, reference):
            found = batch.top_k_of_batch(h, n, weight, backend.above)
            assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    h = torch.randn(32, 400, generator=torch.Generator().manual_seed(0)).to(dtype)
    found, wanted = ops.top_k_of_batch(h, torch.tensor(500), None), by_sorting(h, 500, None)
    assert_close(found[:4], wanted[:4], rtol=0, atol=0)
    assert_close(found[4], wanted[4].to(torch.promote_types(dtype, torch.float32)), rtol=0, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_large_batch_is_looked_at_once(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample's bound is below the n-th largest and lets few more through, though rows differ much."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(512, 2048, generator=g) * torch.rand(512, 1, generator=g).exp()
    weight = torch.rand(2048, generator=g) + 0.5 if weighted else None
    looked = []

    def above(h, threshold, most):
        found = reference.above(h, threshold, most)
        assert found is not None
        looked.append(len(found[0]))
        return found

    n = 512 * 16
    found = batch.top_k_of_batch(h, n, weight, above)
    assert_close(found, by_sorting(h, n, weight), rtol=0, atol=0)
    assert len(looked) == 1
    assert n <= looked[0] < 2 * n


@given(st.lists(st.floats(0, width=32), min_size=1, max_size=50), st.integers(0, 100))
def test_the_nth_largest_is_exact(numbers: list[float], at: int) -> None:
    keys, n = torch.tensor(numbers), at % len(numbers) + 1
    for kind in (keys, keys.double()):
        wanted = kind.sort(descending=True).values[n - 1]
        found, ties, equal = batch.nth_largest(kind, n)
        assert_close(found, wanted, rtol=0, atol=0)
        assert equal == (kind == wanted).sum()
        assert ties == n - (kind > wanted).sum()


CASES = [(2.0, False, 40), (0.3, True, 40), (1.0, True, 7), (0.0, False, 5), (0.02, False, 10_000)]
"""Share of rank 0's rows to be made larger, whether there are ties, n."""


def halves(scale: float, ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (numbers(12, 200, 0.1, seed, ties) for seed in (0, 1))
    return first * scale, second


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    batch.SAMPLE_FROM, batch.BLOCKS = 0, 4
    found = [batch.top_k_of_batch(halves(scale, ties)[rank], n, None, cpu.above) for scale, ties, n in CASES]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_choose_what_one_process_does() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, args=(folder,), nprocs=2, start_method="fork")  # pyright: ignore[reportPrivateImportUsage]
        ranks = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for i, (scale, ties, n) in enumerate(CASES):
        together = torch.cat(halves(scale, ties))
        wanted = by_sorting(together, n, None)
        (v0, r0, l0, _, s0), (v1, r1, l1, _, s1) = ranks[0][i], ranks[1][i]
        assert_close((torch.cat([v0, v1]), torch.cat([r0, r1 + 12]), torch.cat([l0, l1])), wanted[:3], rtol=0, atol=0)
        assert_close((s0, s1), (wanted[4], wanted[4]), rtol=0, atol=0)
