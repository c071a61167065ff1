"""Several stores, mixed with weights."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_lightning.data.encoded import encode
from sae_lightning.data.forward import Rows
from sae_lightning.data.manifest import Manifest
from sae_lightning.data.mixed import CYCLE, MixedDataModule, Mixture
from sae_lightning.data.sources import cached
from sae_lightning.data.writer import ShardBuffer, StoreWriter
from sae_lightning.errors import InputError
from tests.run.test_resume_exact import assert_same_runs, killed_and_resumed, train
from tests.runs import QUIET, SMALL

CONTEXT = 16


def numbered(folder, of_store, shards, hooks=("a", "b"), d=4, context=CONTEXT):
    """Row i of a store, whose number comes first: (of_store, i + 1, 0, …) at `a`, the same with its sign turned at `b`."""
    manifest = Manifest(
        {"made": f"{of_store}"}, dict.fromkeys(hooks, d), "float32", context, [0], shards * 16, 16, 16, dict.fromkeys(hooks, 1.0)
    )
    writer = StoreWriter(folder, manifest)
    for shard in range(shards):
        ids = torch.full((16, context), of_store + 1)
        rows = torch.zeros(16 * context, d)
        rows[:, 0], rows[:, 1] = of_store, 16 * context * shard + torch.arange(1, 16 * context + 1)
        values = {hook: rows if hook == hooks[0] else -rows for hook in hooks}
        encoded = {hook: encode(value, "float32") for hook, value in values.items()}
        norms = {hook: value.double().norm(dim=1) for hook, value in values.items()}
        buffer = ShardBuffer(manifest, shard * 16, 16)
        buffer.add_(Rows(ids, torch.ones_like(ids, dtype=torch.bool), encoded, norms, 0, 0), None)
        writer.write_shard(shard, buffer)
    writer.finish()
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Stores of 1280, 768 and 512 rows."""
    below = tmp_path_factory.mktemp("stores")
    return [numbered(below / str(i), i, shards) for i, shards in enumerate((5, 3, 2))]


def mixed(folders, **settings) -> MixedDataModule:
    made = cached(**{"store": folders, "batch_size": 100, "pool_rows": 500, **settings})
    assert isinstance(made, MixedDataModule)
    made.setup()
    return made


def of(rows):
    """(store, row) of each."""
    return [(int(store), int(number) - 1) for store, number, *_ in rows.tolist()]


@given(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=6), st.integers(0, 5 * CYCLE))
def test_the_parts_take_turns_as_their_weights_say_at_any_moment(weights, n):
    share = np.array(weights) / sum(weights)
    before = Mixture(share).before(n)
    assert before.sum() == n
    assert np.abs(before - n * share).max() <= len(share) + n * len(share) / CYCLE
    cycle = Mixture(share).before(CYCLE)
    if share.min() * CYCLE >= 1:
        assert np.abs(cycle - CYCLE * share).max() < 1
    assert (cycle >= 1).all()


def test_a_weight_too_small_for_the_cycle_still_has_its_turn():
    many = Mixture(np.array([1.0] + [1e-9] * 9) / (1 + 9e-9))
    assert (many.before(CYCLE)[1:] == 1).all()


@pytest.mark.parametrize("batch_size", [100, 64, 7, 512])
def test_each_batch_is_mixed_and_each_row_comes_once_in_a_pass_of_its_store(folders, batch_size):
    data = mixed(folders[:2], batch_size=batch_size, weights=[3, 1], validation_rows=64)
    rows = [of(data.train_batch(i).x) for i in range(2400 // data.batch_size + 1)]
    for batch in rows:
        assert len(batch) == data.batch_size
        of_first = sum(store == 0 for store, _ in batch)
        assert abs(of_first - 0.75 * data.batch_size) <= 2 * data.unit
    for number, store in enumerate(data.stores):
        seen = [row for batch in rows for which, row in batch if which == number]
        once = store.parts.train_rows
        for start in range(0, len(seen) - once + 1, once):
            assert len(set(seen[start : start + once])) == once
        assert set(seen[:once]).isdisjoint(store.parts.validation_rows.tolist())


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 64])
def test_the_batch_does_not_depend_on_the_number_of_ranks(folders, ranks):
    size = 448 if ranks == 64 else 480
    whole = mixed(folders, batch_size=size, validation_rows=64)
    each = [mixed(folders, batch_size=size, validation_rows=64) for _ in range(ranks)]
    for i in range(4):
        batch = whole.train_batch(i).x
        parts = [data.train_batch(i, rank, ranks).x for rank, data in enumerate(each)]
        assert {len(part) for part in parts} == {size // ranks}
        assert sorted(of(torch.cat(parts))) == sorted(of(batch))


def test_ranks_that_divide_a_unit_read_lanes_of_their_own(folders):
    data, asked = mixed(folders, batch_size=320, weights=[1, 2, 3], validation_rows=64), []
    assert data.unit == 16
    for number, store in enumerate(data.stores):
        read = store.batch_at
        store.batch_at = lambda *place, number=number, read=read: asked.append((number, *place)) or read(*place)
    for i, rank in itertools.product(range(5), range(4)):
        asked.clear()
        data.train_batch(i, rank, 4)
        assert len(asked) == 3
        assert all(start % 16 == 0 and own == rank for _, start, _, own, _ in asked)


def test_any_batch_can_be_asked_for_at_any_time(folders):
    one, other = mixed(folders), mixed(folders)
    expected = [one.train_batch(i).x for i in range(30)]
    for i in (29, 3, 17, 16, 0):
        assert torch.equal(other.train_batch(i).x, expected[i])
    assert not torch.equal(mixed(folders, seed=1).train_batch(0).x, expected[0])


def test_without_weights_the_stores_end_together(folders):
    data = mixed(folders)
    assert data.weights.tolist() == pytest.approx([0.5, 0.3, 0.2])
    rows = [at for i in range(2500 // 100 - 1) for at in of(data.train_batch(i).x)]
    for number in range(3):
        share = sum(store == number for store, _ in rows) / data.stores[number].parts.train_rows
        assert share == pytest.approx(len(rows) / sum(store.parts.train_rows for store in data.stores), rel=0.02)


def test_validation_rows_and_samples_are_mixed_alike(folders):
    data = mixed(folders[:2], weights=[1, 3], validation_rows=128)
    held_out = [at for batch in data.held_out() for at in of(batch.x)]
    assert [sum(store == number for store, _ in held_out) for number in (0, 1)] == [32, 96]  # whole sequences of 16
    assert held_out == [at for batch in data.held_out() for at in of(batch.x)]
    sample = of(data.sample(200, 0).x)
    assert [sum(store == number for store, _ in sample) for number in (0, 1)] == [50, 150]
    assert set(sample).isdisjoint(held_out)
    ids, special = data.tokens_held_out(8)
    assert ids[:, 0].tolist() == [1] * 2 + [2] * 6
    assert special.shape == ids.shape == (8, CONTEXT)
    assert data.tokens_train(3, 8)[0][:, 0].tolist() == [1] * 2 + [2] * 6
    one_by_one = [data.tokens_train(i, 1)[0][0, 0].item() for i in range(8)]
    assert sorted(one_by_one) == [1] * 2 + [2] * 6


def test_by_itself_no_store_gives_more_than_a_twentieth_for_validation(folders):
    data = mixed(folders[:2], weights=[1, 3])
    shares = [len(store.parts.validation_rows) / store.store.rows for store in data.stores]
    assert shares[1] == pytest.approx(0.05, abs=CONTEXT / 768)
    assert shares[0] <= shares[1]


def test_the_scale_is_of_the_mixture(folders):
    data = mixed(folders[:2], weights=[1, 3])
    squares = [sum(of_store**2 + i**2 for i in range(1, n + 1)) / n for of_store, n in ((0, 1280), (1, 768))]
    expected = math.sqrt(0.25 * squares[0] + 0.75 * squares[1])
    assert data.scale[0].tolist() == pytest.approx([expected] * 4, rel=1e-5)
    assert mixed(folders[:2], scale="none").scale[0].tolist() == [1.0] * 4


def test_pairs_and_stacks(folders):
    pair = mixed(folders, views="pair").train_batch(2)
    assert torch.equal(pair.x, -pair.y)
    stack = mixed(folders, views="stack").train_batch(2)
    assert stack.y is stack.x
    assert torch.equal(stack.x[:, :4], -stack.x[:, 4:])
    assert torch.equal(stack.x[:, :4], pair.x)


def test_the_pool_and_the_memory_are_shared_by_the_stores(folders):
    data = mixed(folders[:2], weights=[1, 3], pool_rows=1000)
    assert [store.pool_rows for store in data.stores] == [250, 750]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weights": [1]}, r"data\.weights has 1 numbers for 2 stores"),
        ({"weights": [1, 0]}, "give a positive number for each store"),
        ({"weights": [1, math.nan]}, "give a positive number for each store"),
        ({"weights": [1, 1], "last_batch": "short"}, "data.last_batch=short is of one store"),
        ({"hook": "c"}, "'c'"),
        ({"weights": [1, 100], "validation_rows": 600}, "holds out more than half"),
    ],
)
def test_what_cannot_be_mixed_is_one_line(folders, settings, says):
    with pytest.raises(InputError, match=says) as caught:
        mixed(folders[:2], **settings)
    assert "\n" not in str(caught.value)


def test_stores_that_do_not_go_together_are_one_line(folders, tmp_path):
    wide = numbered(tmp_path / "wide", 1, 2, d=8)
    with pytest.raises(InputError, match=r"wide has rows of another width \(8\) at 'a'"):
        mixed([folders[0], wide])
    other = numbered(tmp_path / "other", 1, 2, hooks=("c", "d"))
    with pytest.raises(InputError, match="'a'"):
        mixed([folders[0], other])
    long = mixed([folders[0], numbered(tmp_path / "long", 1, 2, context=32)])
    with pytest.raises(InputError, match="sequences of different lengths"):
        long.tokens_held_out(8)
    with pytest.raises(InputError, match=r"data\.weights=\[1\] are of several stores"):
        cached(folders[0], 10, weights=[1])
    with pytest.raises(InputError, match="empty list"):
        cached([], 10)


def test_a_training_on_two_stores_goes_on_where_it_was_killed(folders, tmp_path):
    words = f"data=cached data.store=[{folders[0]},{folders[1]}] data.weights=[1,3] data.batch_size=64 model=topk model.k=2 "
    words += f"{SMALL[SMALL.index('dictionary') :]} callbacks.last.every_n_steps=10 paths.stores={tmp_path} {QUIET}"
    whole = train(words, tmp_path / "whole")
    again = killed_and_resumed(words, tmp_path / "again", 23)
    assert again.data.rows_trained == 40 * 64
    assert_same_runs(tmp_path / "whole", tmp_path / "again")
    assert [store["weight"] for store in whole.data.about["stores"]] == [0.25, 0.75]
