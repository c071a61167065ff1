"""Which row comes when: every row once per pass, whatever the sizes; lanes and windows of even lengths."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lightning.data.order import LANES, MOST_AT_ONCE, Order, Segment, numbers, places_of


class Blocks(NamedTuple):
    starts: np.ndarray
    lengths: np.ndarray
    shard_starts: np.ndarray

    def of_shard(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        first, stop = np.searchsorted(self.starts, self.shard_starts[shard : shard + 2])
        return self.starts[first:stop], self.lengths[first:stop]

    def order(self, seed: int, pool_rows: int, shards_at_once: int | None = None) -> Order:
        rows = [self.of_shard(shard)[1].sum() for shard in range(len(self.shard_starts) - 1)]
        return Order(self.of_shard, np.array(rows), seed, pool_rows, shards_at_once)


@st.composite
def blocks(draw: st.DrawFn) -> Blocks:
    """Blocks of 1 to 64 rows with gaps between them, in up to five shards."""
    seed, n = draw(st.integers(0, 1000)), draw(st.integers(1, 60))
    g = np.random.default_rng(seed)
    lengths, gaps = g.integers(1, draw(st.sampled_from([2, 20, 65])), n), g.integers(0, 3, n)
    starts = np.cumsum(lengths + gaps) - lengths
    shards = np.sort(g.choice(n, min(draw(st.integers(0, 4)), n), replace=False))
    return Blocks(starts, lengths, np.concatenate([[0], starts[shards], [starts[-1] + lengths[-1]]]))


POOLS = st.sampled_from([1, 63, 64, 200, 1000, 10**6])
AT_ONCE = st.sampled_from([None, 1, 2])


def rows_of(segment: Segment) -> np.ndarray:
    """Rows of the store at each place of a segment, by the definition: the next row of lane t mod LANES."""
    found = np.full(segment.rows, -1)
    for lane in range(min(LANES, segment.rows)):
        row = 0
        while row < segment.lane_rows[lane]:
            window = segment.window(lane, row)
            rows = numbers(*segment.stretches(window))[segment.permutation(window)]
            assert window.begin == row < window.end
            assert segment.window(lane, window.end - 1) == segment.window(lane, (window.begin + window.end) // 2) == window
            found[lane + LANES * np.arange(window.begin, window.end)] = rows
            row = window.end
    return found


def test_what_is_permuted_at_once_does_not_grow_with_the_store():
    shard = 1 << 25
    asked: list[int] = []

    def blocks(i: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(i)
        return np.arange(i * shard, (i + 1) * shard, 64), np.full(shard // 64, 64)

    for shards, rows in ((1, shard), (2, MOST_AT_ONCE), (500, MOST_AT_ONCE)):
        assert Order(blocks, np.full(shards, shard), 0, 1 << 17).segment(0).rows == rows
        assert len(asked) == rows // shard
        asked.clear()


@given(blocks(), POOLS, AT_ONCE, st.integers(0, 3))
def test_a_pass_has_every_row_once(made: Blocks, pool: int, at_once: int | None, number: int) -> None:
    order = made.order(3, pool, at_once)
    place, found = number * order.rows, []
    while place < (number + 1) * order.rows:
        segment = order.segment(place)
        assert order.segment(place + segment.rows - 1) is segment
        assert segment.first == place
        found.append(rows_of(segment))
        place += segment.rows
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), numbers(made.starts, made.lengths))


@given(st.integers(1, 40_000), st.integers(1, 400))
def test_windows_are_as_long_as_the_pool_says_within_half_of_it(rows: int, length: int) -> None:
    segment = Segment((0,), 0, np.array([0]), np.array([rows]), length, seed=0)
    assert segment.lane_rows.sum() == rows
    assert np.ptp(segment.lane_rows) <= 1
    order = Blocks(np.array([0]), np.array([rows]), np.array([0, rows])).order(0, length * LANES)
    for lane in range(0, min(LANES, rows), 7):
        lengths, row = [], 0
        while row < segment.lane_rows[lane]:
            window = segment.window(lane, row)
            lengths.append(window.end - row)
            row = window.end
        assert max(lengths) <= order.most_window_rows
        assert all(n == length for n in lengths[1:-1])
        if len(lengths) > 1:
            assert min(lengths[0], lengths[-1]) >= length // 2
        assert max(lengths) <= 1.5 * length + 1


def test_lanes_change_windows_at_different_times() -> None:
    segment = Segment((0,), 0, np.array([0]), np.array([LANES * 1000]), 100, seed=0)
    ends = np.array([segment.window(lane, 150).end for lane in range(LANES)])
    assert np.bincount(ends % 100 // 25).tolist() == [16, 16, 16, 16]


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    made = Blocks(np.arange(0, 6400, 64), np.full(100, 64), np.array([0, 3200, 6400]))
    first = {(seed, number): rows_of(made.order(seed, 1000).segment(6400 * number)) for seed in (0, 1) for number in (0, 1)}
    assert len({rows.tobytes() for rows in first.values()}) == 4
    np.testing.assert_array_equal(first[1, 1], rows_of(made.order(1, 1000).segment(6400)))


def test_groups_of_shards_are_read_one_after_the_other() -> None:
    """Six shards of 640 rows, two at a time: three groups to a pass, others in the next pass."""
    made = Blocks(np.arange(0, 3840, 64), np.full(60, 64), np.arange(0, 3841, 640))
    order = made.order(0, 500, 2)
    groups = [frozenset(rows_of(order.segment(1280 * i)) // 640) for i in range(30)]
    assert all(len(group) == 2 for group in groups)
    passes = [frozenset(groups[i : i + 3]) for i in range(0, 30, 3)]
    assert all(frozenset.union(*each) == set(range(6)) for each in passes)
    assert len(set(passes)) > 5


@pytest.mark.parametrize(
    ("last", "first_two_passes"),
    [
        ("fill", [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50)]),
        ("drop", [(0, 10), (10, 20), (25, 35), (35, 45)]),
        ("short", [(0, 10), (10, 20), (20, 25), (25, 35), (35, 45), (45, 50)]),
    ],
)
def test_where_a_pass_ends_inside_a_batch(last, first_two_passes) -> None:
    """25 rows in batches of 10."""
    assert [places_of(i, 10, 25, last) for i in range(len(first_two_passes))] == first_two_passes
    again = [tuple(place + 50 for place in each) for each in first_two_passes]
    assert [places_of(len(first_two_passes) + i, 10, 25, last) for i in range(len(again))] == again


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 10**7))
def test_a_batch_is_where_the_one_before_it_ended(rows: int, size: int, batch: int) -> None:
    for last in ("fill", "short"):
        assert places_of(batch, size, rows, last)[1] == places_of(batch + 1, size, rows, last)[0]
    if rows >= size:
        start, stop = places_of(batch, size, rows, "drop")
        assert stop - start == size
        assert start // rows == (stop - 1) // rows
