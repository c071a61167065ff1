"""Rows in their order, by way of a pool or out of mapped files: for any sizes, on any number of ranks, from any place on."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sae_lightning.data.encoded import DTYPES
from sae_lightning.data.order import LANES, numbers
from sae_lightning.data.shuffle import BLOCK, ShuffledRows, Split, split
from sae_lightning.errors import InputError
from tests.data.numbered import WIDTHS, Numbered

pytestmark = pytest.mark.usefixtures("unchecked")
few = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHARDS = st.lists(st.integers(0, 200), min_size=1, max_size=4).filter(lambda shards: sum(shards) >= 100)
POOLS = st.sampled_from([10**6, 400, 130, 1])
RANKS = st.sampled_from([1, 2, 3, 4, 8])


def shuffled(store: Numbered, pool: int = 300, seed: int = 0, hooks=("a",), **settings: Any) -> ShuffledRows:
    return ShuffledRows(store, hooks, split(store, 1), pool, seed, **settings)


def numbers_of(rows) -> list[int]:
    """Of rows at `a`."""
    return (rows[:, 0] - 0.5).long().tolist()


@few
@given(SHARDS, POOLS, RANKS, st.integers(0, 5), st.sampled_from([None, 1, 2]), st.booleans())
def test_every_row_comes_once_in_a_pass_and_the_order_is_that_of_one_rank(shards, pool, ranks, seed, at_once, is_mapped) -> None:
    store = Numbered(shards, seed)
    one = shuffled(store, pool, seed, shards_at_once=at_once)
    n = one.rows
    whole = one.read(0, 2 * n)
    blocks = split(store, 1).blocks
    in_blocks = [row for shard in range(len(shards)) for row in numbers(*blocks(shard))]
    assert sorted(numbers_of(whole[:n])) == sorted(numbers_of(whole[n:])) == in_blocks
    for rank in range(ranks):
        of_rank = shuffled(Numbered(shards, seed, is_mapped=is_mapped), pool, seed, shards_at_once=at_once)
        assert_close(of_rank.read(0, 2 * n, rank, ranks), whole[rank::ranks], rtol=0, atol=0)


@few
@given(SHARDS, POOLS, RANKS, st.integers(1, 300), st.lists(st.integers(0, 1000), min_size=1, max_size=4), st.booleans())
def test_from_any_place_on_the_order_is_that_from_the_start(shards, pool, ranks, batch, places, is_mapped) -> None:
    """A resumed run, and one that jumps to and fro on any number of ranks."""
    n = shuffled(Numbered(shards)).rows
    whole = shuffled(Numbered(shards), pool).read(0, max(places) + batch)
    entered = shuffled(Numbered(shards, is_mapped=is_mapped), pool)
    for place, rank in itertools.product(places, range(min(ranks, batch))):
        assert_close(entered.read(place, place + batch, rank, ranks), whole[place : place + batch][rank::ranks], rtol=0, atol=0)
    assert n == entered.rows


@few
@given(SHARDS, POOLS, st.sampled_from([1, 2, 4, 8, 64]))
def test_ranks_read_rows_of_their_own(shards, pool, ranks) -> None:
    seen: list[int] = []
    for rank in range(ranks):
        store = Numbered(shards)
        rows = shuffled(store, pool)
        del store.reads[:]
        got = rows.read(0, rows.rows, rank, ranks)
        read = [row for each in store.reads for row in range(each.start, each.stop) if len(got)]
        assert set(numbers_of(got)) <= set(read)
        if len(got):
            seen += read[1:]  # the first is looked at for its type
    assert len(seen) == len(set(seen)) == rows.rows


@few
@given(SHARDS, POOLS, st.integers(0, 3000), RANKS)
def test_entering_anywhere_reads_one_window_of_each_lane(shards, pool, place, ranks) -> None:
    store = Numbered(shards)
    rows = shuffled(store, pool)
    segment = rows.order.segment(place)
    stop = min(place + ranks * (LANES // math.gcd(LANES, ranks)), segment.first + segment.rows)
    rows.read(place, stop, 0, ranks)
    t = np.arange(place, stop, ranks) - segment.first
    windows = [segment.window(lane, row) for lane, row in zip((t % LANES).tolist(), (t // LANES).tolist(), strict=True)]
    assert sum(each.stop - each.start for each in store.reads) == 1 + sum(window.end - window.begin for window in windows)
    assert len({window.lane for window in windows}) == len(windows)


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(SHARDS, POOLS, st.integers(0, 500), st.integers(1, 700))
def test_mapped_files_and_a_pool_give_the_same_bits(dtype, shards, pool, place, n) -> None:
    """Two hook points side by side and apart, in another order than the store's."""
    found = []
    for is_mapped in (False, True):
        rows = shuffled(Numbered(shards, dtype=dtype, is_mapped=is_mapped), pool, hooks=("b", "a"))
        assert (rows._mapped is not None) == is_mapped
        together, apart = rows.read(place, place + n), rows.read_apart(place, place + n)
        assert together.dtype == torch.float32
        assert_close(torch.cat(apart, 1), together, rtol=0, atol=0)
        assert all(part.is_contiguous() for part in apart)
        found.append(together)
    assert_close(*found, rtol=0, atol=0)
    expected = Numbered(shards, dtype=dtype)
    by_number = [expected.rows_at(hook, torch.arange(expected.rows)) for hook in ("b", "a")]
    held = {row.numpy().tobytes() for row in torch.cat(by_number, 1)}
    assert {row.numpy().tobytes() for row in found[0]} <= held


def test_what_was_handed_out_stays_as_it_is() -> None:
    """Batches large enough for memory that is used again: it is not, while somebody keeps a batch."""
    rows = shuffled(Numbered([200_000], is_mapped=True, most=400), 50_000)
    kept = [rows.read(i, i + 100_000) for i in range(0, 1_000_000, 100_000)]
    before = [batch.clone() for batch in kept]
    for i in range(5):
        rows.read(i, i + 100_000)
    assert all(torch.equal(one, other) for one, other in zip(kept, before, strict=True))
    assert len({batch.data_ptr() for batch in kept}) == len(kept)


def test_a_window_that_could_not_be_read_is_read_again(monkeypatch) -> None:
    store = Numbered([900, 100])
    expected = shuffled(Numbered([900, 100])).read(0, 900)
    rows = shuffled(store)
    rows.read(0, 100)
    healthy = store.read

    def broken(hook: str, start: int, stop: int):
        if stop > 500:
            raise OSError("the disk is gone")
        return healthy(hook, start, stop)

    monkeypatch.setattr(store, "read", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        rows.read(100, 900)
    monkeypatch.setattr(store, "read", healthy)
    assert_close(rows.read(0, 900), expected, rtol=0, atol=0)


def test_memory_is_that_of_the_pool() -> None:
    for ranks in (1, 4):
        rows = shuffled(Numbered([20_000]), 2000)
        for place in range(0, 40_000, 1000):
            rows.read(place, place + 1000, 0, ranks)
        assert rows._windows is not None
        assert len(rows._windows.rows._pool[0].values) <= 1.5 * 2000 / ranks + LANES


@few
@given(st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(lambda shards: sum(shards) >= 100), st.integers(0, 50))
def test_training_rows_are_cut_at_held_out_sequences_and_at_shards(shards, seed) -> None:
    store = Numbered(shards, seed)
    parts = split(store, None)
    of_sequences = torch.cat([store.sequence_rows(shard) for shard in range(len(shards))])
    is_validation = torch.from_numpy(np.concatenate([parts.is_validation(shard) for shard in range(len(shards))]))
    assert_close(is_validation.nonzero()[:, 0], parts.validation)
    held_out = is_validation.repeat_interleave(of_sequences)
    assert_close(parts.validation_rows, held_out.nonzero()[:, 0])
    assert of_sequences[parts.validation].sum() - of_sequences[parts.validation].max() < max(0.05 * store.rows, 1) <= held_out.sum()
    starts, lengths = map(np.concatenate, zip(*(parts.blocks(shard) for shard in range(len(shards))), strict=True))
    rows = [torch.arange(start, start + n) for start, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    assert_close(torch.cat(rows), (~held_out).nonzero()[:, 0])
    assert parts.train_rows == lengths.sum()
    places = np.random.default_rng(seed).permutation(parts.train_rows)
    assert_close(torch.from_numpy(parts.rows_at(places)), torch.cat(rows)[places])
    for block in rows:
        first, last = torch.searchsorted(store.shard_starts, block[[0, -1]], right=True).tolist()
        assert first == last
        assert len(block) <= BLOCK
    assert len(rows) <= store.rows / BLOCK + len(parts.validation) + len(shards) + 1


class Long(Numbered):
    """Shards of 1000 sequences of 128 rows, of which nothing is stored."""

    def __init__(self, shards: int):
        super().__init__([])
        self.sequences, self.rows = 1000 * shards, 128_000 * shards
        self.shard_sequences, self.shard_starts = 1000 * torch.arange(shards + 1), 128_000 * torch.arange(shards + 1)
        self.asked: list[int] = []

    def sequence_rows(self, shard: int) -> torch.Tensor:
        self.asked.append(shard)
        return torch.full((1000,), 128)


def test_what_is_kept_and_looked_at_does_not_grow_with_the_store() -> None:
    for shards in (100, 10_000):
        store = Long(shards)
        parts = split(store, 2000)
        assert (len(parts.validation), len(parts.validation_rows)) == (16, 2048)
        assert parts.train_rows == store.rows - 2048
        assert len(set(store.asked)) <= 64
        store.asked.clear()
        assert len(parts.rows_at(np.array([0, store.rows // 2]))) == 2
        assert len(store.asked) == 2


def test_a_share_that_leaves_too_little_is_refused() -> None:
    with pytest.raises(InputError, match="holds out more than half"):
        split(Numbered([100]), 90)


def test_widths_are_those_of_the_hook_points() -> None:
    rows = shuffled(Numbered([300]), hooks=("a", "b", "a"))
    assert rows.read(0, 10).shape == (10, 2 * WIDTHS["a"] + WIDTHS["b"])
    assert isinstance(rows.order.rows, int)
    assert isinstance(split(Numbered([300]), 1), Split)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pool_on_the_gpu_gives_the_same_bits(dtype) -> None:
    """Batches are used at once, kept, and made on, while the device is busy."""
    device = torch.device("cuda")
    there, here = (shuffled(Numbered([30_000], dtype=dtype), 4096, hooks=("b", "a"), device=each) for each in (device, torch.device("cpu")))
    busy = torch.randn(2048, 2048, device=device)
    for start in range(0, 60_000, 5000):
        rows = there.read(start, start + 5000, 1, 2)
        busy = busy @ busy / 50
        assert rows.device.type == "cuda"
        assert_close((rows + 0).cpu(), here.read(start, start + 5000, 1, 2), rtol=0, atol=0)
