"""`data.mode=live`: the rows that a store would hold, without one."""

import itertools
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import sae_lightning.data.forward as forward
from sae_lightning.data.harvest import Harvest
from sae_lightning.data.live import ENDLESS, LiveDataModule
from sae_lightning.data.periods import UNITS, Layout
from sae_lightning.data.sources import harvested
from sae_lightning.errors import InputError
from tests.data.tiny import BOS, EOS, HOOKS, LOUD, NAN, D, RandomText, TinyLlama, harvest

SEQUENCES, BATCH = 160, 48
POOL = UNITS * 4 * 16
"""Four sequences to a unit: a pool of 360 rows, of which a period delivers 180; a pass of 2280 rows has 13 periods."""
EXACT = {"rtol": 0, "atol": 0}


def source(stores: Path = Path("nowhere"), **settings) -> Harvest:
    """Of a text of 160 sequences of BOS and 15 rows, read 8 at a time. Its store is not made."""
    return harvest(stores, **({"max_tokens": 16 * SEQUENCES, "hooks": HOOKS[:1]} | settings))


def live(of: Harvest | None = None, **settings) -> LiveDataModule:
    """8 sequences are held out."""
    settings = {"hook": HOOKS[0], "batch_size": BATCH, "validation_rows": 120, "pool_rows": POOL} | settings
    return LiveDataModule(of or source(), **settings)


def batches(data: LiveDataModule, numbers) -> list[Tensor]:
    return [data.train_batch(i).x for i in numbers]


def counted(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Different rows, and how often each is there: a token right behind BOS gives the same row every time."""
    return rows.unique(dim=0, return_counts=True)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first sequence of every forward pass that is made."""
    made, real = [], forward.forward
    monkeypatch.setattr(forward, "forward", lambda *args: (made.append(args[-1]), real(*args))[1])
    return made


# -- when what is in the pool -------------------------------------------------------------------------------------------


@given(sequences=st.integers(1, 3000), first=st.integers(0, 99), context=st.integers(2, 64), pool_rows=st.integers(1, 20_000))
def test_a_pass_is_cut_into_parts_that_fit_the_pool(sequences: int, first: int, context: int, pool_rows: int) -> None:
    layout = Layout(first, first + sequences, context, pool_rows)
    chunks = range(-2, layout.chunks)
    spans = [layout.span(chunk) for chunk in chunks]
    assert [spans[0][0], spans[-1][1]] == [first, first + sequences]
    assert all(one[1] == two[0] for one, two in itertools.pairwise(spans))
    assert layout.capacity <= max(pool_rows, UNITS * context)
    rows = {
        chunk: dict(zip(parts, map(len, torch.empty((stop - start) * context).tensor_split(len(parts))), strict=True))
        for chunk, (start, stop) in zip(chunks, spans, strict=True)
        for parts in (layout.parts(chunk),)
    }
    delivered = []
    for period in range(layout.chunks + 1):
        held, is_last = layout.chunks_in(period), period == layout.chunks
        assert sum(map(len, held.values())) == (3 if is_last else 6)
        following = sum(rows[chunk][part] for chunk in (-2, -1) for part in layout.parts(chunk)) if is_last else 0
        assert sum(rows[chunk][part] for chunk, parts in held.items() for part in parts) + following <= layout.capacity
        delivered += [(chunk, part) for chunk, parts in held.items() for part in parts if is_last or part == period - chunk]
    assert sorted(delivered) == [(chunk, part) for chunk in chunks for part in layout.parts(chunk)]


# -- the rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16", "forward_batch_size": 7},
        {"dtype": "int8"},
        {"transformer": TinyLlama(spoilt=True), "text": RandomText(rare=LOUD), "exclude_norm_above": 10.0},
        {"transformer": TinyLlama(spoilt=True), "text": RandomText(rare=NAN), "on_nonfinite": "skip"},
        {"text": RandomText(rare=EOS), "hooks": HOOKS},
    ],
    ids=["float32", "bfloat16", "int8", "norms", "nan", "special"],
)
def test_a_pass_of_the_text_is_the_rows_of_the_store(settings, tmp_path: Path) -> None:
    """Bitwise: held-out rows are its first ones, each pass has all others."""
    store = source(tmp_path, **settings).ensure()
    every = store.read(HOOKS[0], 0, store.rows).float()
    data = live(source(**settings))
    held_out = torch.cat([batch.x for batch in data.held_out()])
    assert 120 <= len(held_out) < 120 + 15
    assert_close(held_out, every[: len(held_out)], **EXACT)
    n = store.rows - len(held_out)
    one, two = (data.pool.read(start, start + n) for start in (0, n))
    for found in (one, two):
        assert_close(counted(found), counted(every[len(held_out) :]), **EXACT)
    assert not torch.equal(one, two)
    scale = torch.cat([data.pool.read(0, n)]).double().square().sum(1).mean().sqrt()
    assert float(data.scale[0][0]) == pytest.approx(float(scale), rel=1e-6)  # all training rows are among the first 65 536


def test_batches_are_a_pure_function_of_seed_and_number() -> None:
    expected = batches(live(), range(110))  # more than two passes
    entered = live()
    for i in [*torch.randperm(110, generator=torch.Generator().manual_seed(0))[:12].tolist(), 40, 37, 33, 35, 40]:
        assert_close(entered.train_batch(i).x, expected[i], **EXACT)
    assert not torch.equal(live(seed=1).train_batch(0).x, expected[0])
    assert {rows.shape for rows in expected} == {(BATCH, D)}
    assert {rows.dtype for rows in expected} == {torch.float32}


def test_rows_are_mixed(tmp_path: Path) -> None:
    """A period's rows come from three chunks of the text, 36 sequences: a batch of 48 has no neighbours to speak of."""
    store = source(tmp_path).ensure()
    every = store.read(HOOKS[0], 0, store.rows).float()
    rows = live().train_batch(40).x
    numbers = (rows[:, None] == every).all(2).double().argmax(1)
    assert len((numbers // 15).unique()) > 20
    assert int((numbers.diff() == 1).sum()) < 5


def test_the_pool_is_between_half_and_full() -> None:
    data = live()
    fills = []
    for i in range(110):
        data.train_batch(i)
        data.batches_trained = i + 1
        fills.append(data.numbers()["buffer_fill_pct"])
    assert 100 * 169 / 360 <= min(fills) < 52  # units differ by a sequence, where they do not divide the text
    assert 90 < max(fills) <= 100
    assert len(data.pool._free) >= 0
    assert data.pool._values[HOOKS[0]].values.shape == (POOL, D)


@pytest.mark.parametrize("views", ["pair", "stack"])
def test_two_hook_points_are_of_the_same_tokens_in_the_order_of_one(views) -> None:
    both = live(source(hooks=HOOKS), others=HOOKS[1:], views=views)
    x, y = live(source(hooks=HOOKS)), live(source(hooks=HOOKS), hook=HOOKS[1])
    for i in (0, 9, 12):
        batch, alone = both.train_batch(i), (x.train_batch(i).x, y.train_batch(i).x)
        assert_close(tuple(batch) if views == "pair" else batch.x, alone if views == "pair" else torch.cat(alone, dim=1), **EXACT)
    held_out = next(both.held_out())
    assert_close(
        torch.cat(held_out, dim=1) if views == "pair" else held_out.x,
        torch.cat([next(x.held_out()).x, next(y.held_out()).x], dim=1),
        **EXACT,
    )
    s_x, s_y = x.scale[0], y.scale[0]
    assert_close(both.scale, (s_x, s_y) if views == "pair" else (torch.cat([s_x, s_y]),) * 2)
    assert both.shape == (((D,), (D,)) if views == "pair" else ((D, D), (D, D)))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_take_turns_in_the_batch_of_one_process(ranks: int) -> None:
    """Also where a batch lies in two periods."""
    every = [live() for _ in range(ranks)]
    for i, expected in enumerate(batches(live(), range(20))):
        for rank, data in enumerate(every):
            assert_close(data.train_batch(i, rank, ranks).x, expected[rank::ranks], **EXACT)


# -- resume -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 3, 5, 10, 15, 45, 47, 48, 60])
def test_a_resumed_run_goes_on_and_reads_three_chunks_at_most(cut: int, passes: list[int]) -> None:
    """Cuts inside and at the end of the first period (180 rows, 3.75 batches), the second, later ones, the last one, and the second pass."""
    whole = live()
    before, expected = batches(whole, range(cut)), batches(whole, range(cut, cut + 12))
    whole.batches_trained = cut
    state = whole.state_dict()
    assert all(type(value) is int for value in state.values())
    resumed = live()
    resumed.setup()
    passes.clear()
    resumed.load_state_dict(state)
    assert_close(resumed.pool.read(cut * BATCH, cut * BATCH + 1), expected[0][:1], **EXACT)
    chunk = 12  # sequences
    assert len(set(passes)) * 8 <= 3 * chunk + 2 * 7
    assert len(passes) <= len(set(passes)) + 2  # a forward pass that two passes of the text share
    assert_close(batches(resumed, range(cut, cut + 12)), expected, **EXACT)
    assert resumed.state_dict() | {"batches_trained": cut} == state
    assert_close(batches(resumed, range(cut)), before, **EXACT)  # what lies before can be had, too


def test_what_is_read_once_is_not_read_again(passes: list[int]) -> None:
    data = live()
    data.setup()
    held_out_and_sampled = len(passes)
    assert held_out_and_sampled == SEQUENCES // 8
    passes.clear()
    batches(data, range(47))
    assert len(passes) <= SEQUENCES // 8 + 1 + 4  # a pass of the text, and the first chunks of the next


# -- where a text ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [16 * 300, ENDLESS])
def test_a_text_that_ends_is_read_again_which_is_said_once(max_tokens: int, caplog: pytest.LogCaptureFixture) -> None:
    data = live(source(text=RandomText(length=101), max_tokens=max_tokens))
    n = (101 - 8) * 15
    rows = [data.pool.read(i * n, (i + 1) * n) for i in range(3)]
    assert len(counted(rows[0])[0]) > 1000
    for other in rows[1:]:
        assert_close(counted(other), counted(rows[0]), **EXACT)
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["all 101 sequences of the text have been read: from here on they are read again (said once)"]


@pytest.mark.parametrize("sequences", [12, 13, 20, 40])
def test_a_text_shorter_than_the_pool_is_read_over_and_over(sequences: int) -> None:
    data = live(source(text=RandomText(length=sequences), max_tokens=16 * 300), batch_size=16, validation_rows=15)
    n = (sequences - 1) * 15
    rows = [data.pool.read(i * n, (i + 1) * n) for i in range(3)]
    assert_close(counted(rows[2]), counted(rows[0]), **EXACT)


# -- samples and sequences ----------------------------------------------------------------------------------------------


def test_a_sample_is_of_training_rows_without_replacement() -> None:
    data = live(source(max_tokens=16 * 300))
    rows, again = data.sample(500, 3).x, live(source(max_tokens=16 * 300), seed=4).sample(500, 3).x
    assert_close(rows, again, **EXACT)
    every = data.pool.read(0, (300 - 8) * 15)
    assert bool((rows[:, None] == every).all(2).any(1).all())
    assert len(data.sample(10**6, 0).x) == len(every)  # all of them, where there are fewer than 65 536


def test_sequences_say_where_no_row_came_from() -> None:
    of = source(transformer=TinyLlama(spoilt=True), text=RandomText(rare=LOUD), exclude_norm_above=10.0)
    data = live(of, validation_rows=600)
    for ids, special in (data.tokens_held_out(10**6), data.tokens_train(3, 30)):
        assert ids.dtype == torch.int64
        assert bool((ids == LOUD).any())
        assert torch.equal(special, (ids == BOS) | (ids == EOS) | (ids == LOUD))
    assert len(data.tokens_held_out(2)[0]) == 2
    skipped = live(source(transformer=TinyLlama(spoilt=True), text=RandomText(rare=NAN), on_nonfinite="skip"))
    assert len(skipped.tokens_held_out(100)[0]) == 8  # of 9 sequences one gave no row
    assert not (skipped.tokens_held_out(100)[0] == NAN).any()


def test_training_sequences_are_a_pure_function_of_the_batch(passes: list[int]) -> None:
    """Those that the rows of the batch were mixed among; asked for behind the rows of a later batch, as by a prefetching thread, and after a resume."""
    data = live()
    expected = [live().tokens_train(i, 5)[0] for i in (0, 7, 20, 50)]
    held_out = data.tokens_held_out(100)[0]
    for i, ids in zip((0, 7, 20, 50), expected, strict=True):
        data.batches_trained = i + 1
        data.train_batch(i + 3)
        passes.clear()
        assert_close(data.tokens_train(i, 5)[0], ids, **EXACT)
        assert not passes
        assert len(ids.unique(dim=0)) == 5
        assert not (ids[:, None] == held_out).all(2).any()
    resumed = live()
    resumed.load_state_dict(data.state_dict() | {"batches_trained": 51})
    assert_close(resumed.tokens_train(50, 5)[0], expected[3], **EXACT)
    data.train_batch(54)
    assert len(data.pool._sequences) <= 3
    data.repeat_batches = 8
    assert_close(data.tokens_train(15, 5)[0], expected[1], **EXACT)


# -- beside a training --------------------------------------------------------------------------------------------------


def test_others_use_the_transformer_at_the_same_time(passes: list[int]) -> None:
    """Weights are held once, and what somebody hooks into the transformer does not reach the rows; nor is anything drawn."""
    expected, of = live().train_batch(0).x, source()
    data = live(of)
    data.setup()
    assert of.transformer.loads == 1
    apart = data.reading._passes.transformer
    assert {id(p) for p in apart.model.parameters()} == {id(p) for p in apart.shared.parameters()}
    apart.shared.model.layers[0].register_forward_hook(lambda _, __, output: output * 0)
    before = torch.get_rng_state()
    rows = data.train_batch(0).x
    assert_close(rows, expected, **EXACT)
    assert not rows.requires_grad
    assert torch.equal(torch.get_rng_state(), before)
    batches(data, range(1, 60))
    assert of.transformer.loads == 1


def test_autocast_does_not_reach_the_rows() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = live().train_batch(0).x
    assert_close(found, live().train_batch(0).x, **EXACT)


def made(**settings):
    return harvested(TinyLlama(), RandomText(), "nowhere", 64, **({"mode": "live", "context_length": 16, "max_tokens": 2048} | settings))


def test_the_source_says_what_it_is(tmp_path: Path) -> None:
    data = made(hook=HOOKS[1])
    assert isinstance(data, LiveDataModule)
    assert data.shape == ((D,), (D,))
    assert data.transformer.loads == 0
    assert (data.about["mode"], data.about["max_tokens"], made(max_tokens=None).about["max_tokens"]) == ("live", 2048, None)
    assert data.validation_rows == 102
    assert made(max_tokens=None).validation_rows == 65_536
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": None, "mode": "store"}, "data.max_tokens is null, which would store a text without end"),
        ({"pool_rows": 0}, "data.pool_rows is 0"),
        ({"validation_rows": 0}, "data.validation_rows is 0"),
        ({"validation_rows": 1500}, "data.validation_rows is 1500: give .* at most half of data.max_tokens"),
        ({"context_length": 65}, "context_length=65 is more than the 64 positions of 'tiny'"),
        ({"hook": "layer"}, "hook point 'layer' is not in this transformer"),
        ({"hook": "layer", "hooks": HOOKS}, "data.hook='layer' is not among data.hooks"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_loaded(settings, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        _ = made(**settings).shape
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": RandomText(length=0)}, "the text 'random' gives no row"),
        ({"text": RandomText(length=8)}, "ends after 8 sequences of 16 tokens, and rows are wanted of those behind sequence 8"),
        ({"text": RandomText(length=10)}, "gives 30 training rows beside 120 validation rows"),
        ({"text": RandomText(highest=90)}, "tokenised for another transformer"),
        (
            {"transformer": TinyLlama(spoilt=True), "text": RandomText(rare=NAN)},
            r"sequence 3, position 1 has NaN .* data.on_nonfinite=skip",
        ),
    ],
)
def test_a_text_that_cannot_be_is_one_line(settings, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        live(source(**settings)).setup()
    assert "\n" not in str(error.value)


def test_what_is_read_apart_is_written_by_the_trained_transformer(tmp_path: Path) -> None:
    from sae_lightning.data.reading import Apart
    from sae_lightning.transformers.huggingface import HuggingFace
    from tests.transformers.tiny_gpt2 import save_tiny_gpt2

    save_tiny_gpt2(tmp_path)
    cpu, plain = torch.device("cpu"), HuggingFace(str(tmp_path))
    drawn = Apart(HuggingFace(str(tmp_path), random_weights=7), cpu)
    assert_close(drawn.trained().load().state_dict(), plain.load().state_dict(), rtol=0, atol=0)
    assert not torch.equal(drawn.load().state_dict()["lm_head.weight"], plain.load().state_dict()["lm_head.weight"])
    same = Apart(plain, cpu)
    assert same.trained() is same
