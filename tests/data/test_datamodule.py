import itertools
import threading
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sae_lightning.data.datamodule import ActivationDataModule
from sae_lightning.data.encoded import encode
from sae_lightning.data.forward import Rows
from sae_lightning.data.harvest import Harvest
from sae_lightning.data.manifest import Manifest
from sae_lightning.data.shuffle import BLOCK
from sae_lightning.data.sources import cached, harvested
from sae_lightning.data.store import ExistingStore, Store
from sae_lightning.data.writer import ShardBuffer, StoreWriter
from sae_lightning.errors import InputError
from tests.data.tiny import BOS, EOS, HOOKS, LOUD, D, RandomText, TinyLlama, harvest

ROWS = 256 * 15


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """256 sequences of BOS and 15 rows, in 4 shards. Every entry of row i is i + 1."""
    manifest = Manifest(
        identity={},
        widths={HOOKS[0]: D},
        dtype="float32",
        context_length=16,
        special_ids=[BOS, EOS],
        sequences=256,
        shard_sequences=64,
        forward_batch_size=64,
    )
    writer = StoreWriter(tmp_path_factory.mktemp("stores") / "numbered", manifest)
    writer.set_median_norms({HOOKS[0]: ROWS / 2 * D**0.5})
    for shard in range(4):
        ids = torch.randint(2, 62, (64, 16), generator=torch.Generator().manual_seed(shard))
        ids[:, 0] = BOS
        rows = (960 * shard + torch.arange(1.0, 961.0))[:, None].repeat(1, D)
        buffer = ShardBuffer(manifest, 64 * shard, 64)
        encoded = {HOOKS[0]: encode(rows, "float32")}
        buffer.add_(Rows(ids, ids != BOS, encoded, {HOOKS[0]: rows.double().norm(dim=1)}, special=64, nonfinite=0), None)
        writer.write_shard(shard, buffer)
    writer.finish()
    return Store(writer.folder)


def number_of(rows):
    """Numbers of rows of the store."""
    return (rows[:, 0].long() - 1).tolist()


@pytest.fixture
def data(store):
    """Makes datamodules on the store; several windows to a pass, batches that do not divide a window."""

    def make(**settings) -> ActivationDataModule:
        return ActivationDataModule(ExistingStore(store.path), **{"hook": HOOKS[0], "batch_size": 100, "pool_rows": 1000, **settings})

    return make


def held_out(data):
    return torch.cat([batch.x for batch in data.held_out()])


def test_every_row_is_in_training_or_in_validation_by_whole_sequences(data, store):
    made = data()
    validation = number_of(held_out(made))
    stream = made.shuffled.read(0, made.parts.train_rows)
    train = number_of(stream)
    assert sorted(validation + train) == list(range(store.rows))
    assert {i // 15 for i in validation}.isdisjoint({i // 15 for i in train})
    assert 0.05 <= len(validation) / store.rows <= 0.06
    assert validation == sorted(validation)


def test_validation_rows_are_the_same_ones_whatever_the_seed(data):
    torch.testing.assert_close(held_out(data(seed=0)), held_out(data(seed=1, batch_size=64)), rtol=0, atol=0)
    assert 384 <= len(held_out(data(validation_rows=384))) < 384 + 15


def test_batches_are_a_pure_function_of_seed_and_number(data):
    ordered = data()
    expected = [ordered.train_batch(i).x for i in range(90)]  # more than two passes
    entered = data()
    for i in torch.randperm(90, generator=torch.Generator().manual_seed(0)).tolist():
        torch.testing.assert_close(entered.train_batch(i).x, expected[i], rtol=0, atol=0)
    assert not torch.equal(data(seed=1).train_batch(0).x, expected[0])
    assert {batch.shape for batch in expected} == {(100, D)}
    assert {batch.dtype for batch in expected} == {torch.float32}


def test_each_pass_holds_every_training_row_once_in_another_order(data):
    made = data()
    n = made.parts.train_rows
    passes = [number_of(made.shuffled.read(i * n, (i + 1) * n)) for i in range(3)]
    assert len(set(passes[0])) == n
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert passes[0] != passes[1] != passes[2]


def test_batches_are_mixed_over_the_whole_store(data, store):
    made = data(pool_rows=1920)
    # A window has 30 blocks of the whole store; with a uniform choice a batch of 100 rows reaches nearly all of them.
    rows = number_of(made.train_batch(0).x)
    assert len({i // BLOCK for i in rows}) > 24
    assert min(rows) < 0.15 * store.rows
    assert max(rows) > 0.85 * store.rows
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(rows))
    assert neighbours < 5


def test_several_threads_get_the_same_batches(data):
    expected = [batch.x for batch in map(data().train_batch, range(40))]
    shared, wrong = data(), []

    def work(offset):
        for i in range(40):
            at = (i * 7 + offset) % 40
            if not torch.equal(shared.train_batch(at).x, expected[at]):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 13, 29)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("last_batch", ["fill", "drop", "short"])
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_batches_of_a_pass_whose_end_is_no_batchs(data, last_batch, ranks):
    """Of ~ 3640 rows in batches of 120; on any number of ranks."""
    made = data(batch_size=120, last_batch=last_batch)
    n = made.parts.train_rows
    rest = n % 120
    assert rest > 4
    batches = n // 120 + (last_batch == "short")
    shares = [[made.train_batch(i, rank, ranks).x for rank in range(ranks)] for i in range(2 * batches)]
    assert len({len(share) for share in shares[0]}) == 1
    rows = [set(number_of(torch.cat(share))) for share in shares]
    assert [len(batch) for batch in rows[: batches - 1]] == [120] * (batches - 1)
    if last_batch == "short":
        assert len(rows[batches - 1]) == len(rows[-1]) == rest - rest % ranks
    if last_batch != "fill":
        for number in (0, 1):
            assert len(set.union(*rows[number * batches : (number + 1) * batches])) == n - {"drop": rest, "short": rest % ranks}[last_batch]
    whole = made.train_batch(batches - 1).x[: len(rows[batches - 1])]
    assert_close(torch.stack(shares[batches - 1], 1).flatten(0, 1), whole, rtol=0, atol=0)


@pytest.mark.parametrize("last_batch", ["fill", "drop", "short"])
def test_rows_trained_are_counted(data, last_batch):
    made = data(batch_size=120, last_batch=last_batch)
    made.batches_trained = 2 * -(-made.parts.train_rows // 120)
    assert made.rows_trained == (2 * made.parts.train_rows if last_batch == "short" else 120 * made.batches_trained)


def test_a_short_batch_of_fewer_rows_than_ranks_is_refused_before_training(data, store):
    n = data().parts.train_rows
    size = next(size for size in range(8, 400, 8) if 0 < n % size < 8)
    made = data(batch_size=size, last_batch="short")
    made.trainer = SimpleNamespace(global_rank=0, world_size=8)
    with pytest.raises(InputError, match=rf"ends with {n % size} rows, too few for 8 ranks: set data.last_batch to fill or drop"):
        made.train_dataloader()


def test_x_is_y(data):
    made = data()
    for batch in (made.train_batch(0), next(made.held_out()), made.sample(10, 0)):
        assert batch.x is batch.y
    assert made.shape == ((D,), (D,))


def test_a_sample_is_of_training_rows_without_replacement(data):
    made = data()
    rows = number_of(made.sample(500, seed=3).x)
    assert len(set(rows)) == 500
    assert not set(rows) & set(number_of(held_out(made)))
    assert rows == number_of(data(seed=5).sample(500, seed=3).x) != number_of(made.sample(500, seed=4).x)
    assert sorted(number_of(made.sample(10**6, 0).x)) == sorted(number_of(made.shuffled.read(0, made.parts.train_rows)))


@pytest.mark.parametrize(("scale", "expected"), [("unit", 1.0), ("sqrt_d", float(D)), ("none", None)])
def test_scaled_rows_have_the_norm_that_the_setting_says(data, store, scale, expected):
    x, y = data(scale=scale).scale
    rows = store.read(HOOKS[0], 0, store.rows).float().double()
    mean_square = (rows / x.double()).square().sum(1).mean().item()
    assert mean_square == pytest.approx(expected or rows.square().sum(1).mean().item(), rel=1e-6)
    assert torch.equal(x, y)
    assert x.shape == (D,)


def test_tokens_held_out_are_those_of_the_validation_sequences(data, store):
    made = data()
    ids, special = made.tokens_held_out(5)
    assert ids.shape == special.shape == (5, 16)
    assert ids.dtype == torch.int64
    assert torch.equal(special, (ids == BOS) | (ids == EOS))
    sequences = made.parts.validation[:5]
    torch.testing.assert_close(ids, store.tokens(sequences).long())
    every, _ = made.tokens_held_out(10**6)
    assert len(every) == len(made.parts.validation)


def test_positions_left_out_by_norm_count_as_special(tmp_path):
    source = harvest(
        tmp_path, transformer=TinyLlama(spoilt=True), text=RandomText(rare=LOUD), hooks=HOOKS[:1], exclude_norm_above=10.0, max_tokens=4096
    )
    ids, special = ActivationDataModule(source, HOOKS[0], 8, validation_rows=1800).tokens_held_out(200)
    assert (ids == LOUD).sum() > 2
    assert torch.equal(special, (ids == BOS) | (ids == EOS) | (ids == LOUD))


class Recorder(L.LightningModule):
    """Trains nothing worth mentioning and remembers its batches."""

    def __init__(self, data: ActivationDataModule):
        super().__init__()
        self.data = data
        self.weight = nn.Parameter(torch.zeros(D))
        self.seen: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def training_step(self, batch, _):
        self.seen.append(batch.x.clone())
        self.data.batches_trained += 1
        return (batch.x @ self.weight).square().mean()

    def validation_step(self, batch, _):
        self.validated.append(batch.x.clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")  # no loader here has workers
def test_a_trainer_gets_the_batches_in_order_and_a_cursor_goes_on(tmp_path, data):
    def fit(made, steps, steps_run):
        module = Recorder(made)
        trainer = L.Trainer(
            max_steps=steps,
            max_epochs=1,
            val_check_interval=3,
            num_sanity_val_steps=0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, datamodule=made)
        torch.testing.assert_close(torch.cat(module.validated), torch.cat([held_out(made)] * (steps_run // 3)), rtol=0, atol=0)
        return module.seen

    expected = [data().train_batch(i).x for i in range(12)]
    torch.testing.assert_close(fit(data(), 12, 12), expected, rtol=0, atol=0)
    resumed = data()
    resumed.load_state_dict({"batches_trained": 5})
    torch.testing.assert_close(fit(resumed, 8, 3), expected[5:8], rtol=0, atol=0)


def test_harvested_makes_the_store_and_knows_its_shape_before(tmp_path):
    transformer = TinyLlama()
    made = harvested(transformer, RandomText(), str(tmp_path), 64, hook=HOOKS[1], hooks=HOOKS, context_length=16, max_tokens=1024)
    assert made.shape == ((D,), (D,))
    assert transformer.loads == 0
    assert made.transformer is transformer
    made.prepare_data()
    made.setup()
    assert made.hook == HOOKS[1]
    assert len(list(tmp_path.iterdir())) == 1
    again = cached(str(made.source.path), 64)
    assert again.hook == HOOKS[0]
    assert again.transformer is None
    torch.testing.assert_close(cached(str(made.source.path), 64, hook=HOOKS[1]).train_batch(3).x, made.train_batch(3).x, rtol=0, atol=0)


def test_the_seed_of_a_run_never_harvests_again(tmp_path):
    paths = {harvested(TinyLlama(), RandomText(), str(tmp_path), 64, seed=seed).source.path for seed in range(3)}
    assert len(paths) == 1
    assert harvested(TinyLlama(), RandomText(), str(tmp_path), 64, harvest_seed=1).source.path not in paths


def test_which_hook_points_are_harvested(tmp_path):
    def hooks(**settings):
        made = harvested(TinyLlama(), RandomText(), str(tmp_path), 64, **settings)
        assert isinstance(made.source, Harvest)
        return made.source.hooks, made.hook

    assert hooks() == (HOOKS, HOOKS[0])
    assert hooks(hook="model.layers.1") == (["model.layers.1"], "model.layers.1")
    assert hooks(hook=HOOKS[1], hooks=HOOKS) == (HOOKS, HOOKS[1])
    with pytest.raises(InputError, match=r"data.hook='x' is not among data.hooks"):
        hooks(hook="x", hooks=HOOKS)


def test_bad_input_is_one_line(tmp_path, data, store):
    for settings, message in (
        ({"batch_size": 4000}, "training rows, less than one batch of data.batch_size=4000"),
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"pool_rows": 0}, "data.pool_rows is 0"),
        ({"shards_at_once": 0}, "data.shards_at_once is 0"),
        ({"validation_rows": 0}, "data.validation_rows is 0"),
        ({"validation_rows": 2000}, "data.validation_rows=2000 holds out more than half of the 3840 rows"),
        ({"hook": "layer"}, "hook point 'layer' is not in"),
    ):
        with pytest.raises(InputError, match=message) as error:
            data(**settings).setup()
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="hook point 'layer' is not in"):
        _ = data(hook="layer").shape
    with pytest.raises(InputError, match="is no activation store"):
        cached(str(tmp_path / "nothing"), 64)
    with pytest.raises(InputError, match=r"data.max_tokens=63 is less than one batch of data.batch_size=64"):
        harvested(TinyLlama(), RandomText(), str(tmp_path), 64, max_tokens=63)
    short = harvested(TinyLlama(), RandomText(length=8), str(tmp_path), 128, context_length=16, max_tokens=1024)
    with pytest.raises(InputError, match=r"has \d+ training rows, less than one batch"):
        short.setup()
