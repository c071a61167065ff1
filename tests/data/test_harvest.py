import json
import logging
import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sae_lightning.data import manifest as names
from sae_lightning.data.encoded import DTYPES
from sae_lightning.data.sources import cached
from sae_lightning.data.store import Store
from sae_lightning.errors import InputError
from sae_lightning.transformers.hooks import read
from tests.data.numbered import rows_of_sequences
from tests.data.tiny import BOS, HOOKS, LOUD, NAN, D, RandomText, TinyLlama, files, harvest

fork = multiprocessing.get_context("fork")
forks = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: threads of torch; the child does not use them


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_the_activations_with_their_tokens(tmp_path, dtype):
    transformer, text = TinyLlama(), RandomText()
    store = harvest(tmp_path, transformer=transformer, text=text, dtype=dtype).ensure()
    ids = torch.tensor([s for s, _ in zip(text.sequences(transformer, 16, 0, 0), range(64), strict=False)])
    expected = read(transformer.load(), HOOKS, ids)
    assert store.rows == 64 * 15  # 64 sequences of 16 tokens, of which one is BOS
    assert store.hooks == HOOKS
    for hook in HOOKS:
        rows = expected[hook][:, 1:].reshape(-1, D)
        tolerance = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-3, "int8": 1.6e-2}[dtype]
        read_back = store.read(hook, 0, store.rows)
        assert read_back.values.dtype == DTYPES[dtype]
        torch.testing.assert_close(read_back.float(), rows, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(store.tokens(range(64)), ids.int())
    with safe_open(store.path / "shard-00002.safetensors", framework="pt") as file:  # sequences 32 … 47
        assert file.get_tensor("token").dtype == torch.int32
        torch.testing.assert_close(file.get_tensor("token"), ids[32:48, 1:].flatten().int())
        torch.testing.assert_close(file.get_tensor("sequence"), torch.arange(32, 48).repeat_interleave(15))
        torch.testing.assert_close(file.get_tensor("position"), torch.arange(1, 16, dtype=torch.int32).repeat(16))
        torch.testing.assert_close(file.get_tensor("sequence_ids"), torch.arange(32, 48))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_statistics_are_those_of_the_rows_as_stored(tmp_path, dtype):
    store = harvest(tmp_path, dtype=dtype).ensure()
    for hook in HOOKS:
        rows = store.read(hook, 0, store.rows).float().double()
        norms = rows.norm(dim=1)
        statistics = store.statistics(hook)
        assert statistics.count == store.rows
        torch.testing.assert_close(statistics.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            torch.tensor(statistics[2:], dtype=torch.float64),
            torch.stack([norms.square().sum(), norms.min(), norms.max(), norms.median()]),
            rtol=1e-12,
            atol=0,
        )


def test_complete_is_a_no_op(tmp_path):
    harvest(tmp_path).ensure()
    transformer = TinyLlama()
    again = harvest(tmp_path, transformer=transformer)
    before = {path: path.stat().st_mtime_ns for path in again.path.iterdir()}
    assert again.ensure().rows == 64 * 15
    assert again.widths() == dict.fromkeys(HOOKS, D)
    assert transformer.loads == 0
    assert {path: path.stat().st_mtime_ns for path in again.path.iterdir()} == before


@pytest.mark.parametrize(
    "other",
    [
        {"hooks": HOOKS[:1]},
        {"seed": 1},
        {"max_tokens": 512},
        {"context_length": 8},
        {"dtype": "float16"},
        {"exclude_norm_above": 10.0},
        {"transformer": TinyLlama(spoilt=True)},
        {"text": RandomText(length=64)},
    ],
)
def test_another_configuration_never_reuses_the_folder(tmp_path, other):
    assert harvest(tmp_path, **other).path != harvest(tmp_path).path
    assert harvest(tmp_path, shard_rows=512, forward_batch_size=4).path == harvest(tmp_path).path


def test_manifest_says_what_the_store_is(tmp_path):
    folder = harvest(tmp_path).ensure().path
    manifest = json.loads((folder / "manifest.json").read_text())
    assert folder.name.startswith("tiny-random-")
    assert len(folder.name) == len("tiny-random-") + 10
    assert manifest["schema"] == 2
    assert manifest["complete"] is True
    assert manifest["identity"]["transformer"] == {"name": "tiny", "spoilt": False, "dtype": "float32"}
    counts = {"tokens": 1024, "rows": 960, "special": 64, "nonfinite": 0, "norm_above_limit": 0, "large_norms": dict.fromkeys(HOOKS, 0)}
    assert manifest["counts"] == counts
    assert [shard["counts"]["rows"] for shard in manifest["shards"]] == [240] * 4


def slowed(stores, seconds):
    """A harvest that can be hit: it sleeps between forward passes."""

    class SlowText(RandomText):
        def sequences(self, *args):
            for sequence in super().sequences(*args):
                time.sleep(seconds)
                yield sequence

    return harvest(stores, text=SlowText(), exclude_norm_above=1.3)


@forks
def test_a_killed_harvest_goes_on_and_ends_equal_to_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lightning.data.harvest.ROWS_FOR_MEDIAN", 100)  # so that shards are written early
    whole = harvest(tmp_path / "whole", exclude_norm_above=1.3).ensure()
    killed = slowed(tmp_path / "killed", 0.002)  # 64 sequences: at least 0.13 s
    chance = random.Random(0)
    kills = 0
    for _ in range(60):
        process = fork.Process(target=killed.ensure)
        process.start()
        process.join(chance.uniform(0.01, 0.03) * (kills + 1))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert kills >= 3
    # What is recorded for a store that was begun counts, not what is asked for now.
    store = harvest(tmp_path / "killed", exclude_norm_above=1.3, shard_rows=512, forward_batch_size=4).ensure()
    assert store.path.name == whole.path.name
    assert files(store.path) == files(whole.path)


@forks
def test_of_two_processes_one_harvests_and_the_other_waits_and_says_so(tmp_path, caplog):
    source, transformer = slowed(tmp_path, 0.01), TinyLlama()
    source.transformer = transformer
    process = fork.Process(target=source.ensure)
    process.start()
    while not (source.path / ".harvesting.json").exists():
        time.sleep(0.01)
    with caplog.at_level(logging.WARNING):
        store = source.ensure()
    process.join()
    assert process.exitcode == 0
    assert transformer.loads == 0
    assert [f"waiting for process {process.pid} on" in record.message for record in caplog.records] == [True]
    assert store.rows == source.ensure().rows > 0


@forks
def test_eight_processes_make_one_harvest(tmp_path):
    loads = fork.Value("i", 0)

    class Counted(TinyLlama):
        def load(self, *args):
            with loads.get_lock():
                loads.value += 1
            return super().load(*args)

    processes = [fork.Process(target=harvest(tmp_path, transformer=Counted()).ensure) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    assert loads.value == 1


@pytest.mark.parametrize("index", [0, 2, 3])
def test_a_deleted_shard_is_harvested_again_alone(tmp_path, index):
    source = harvest(tmp_path)
    path = source.ensure().path
    before = files(path)
    modified = (path / "shard-00001.safetensors").stat().st_mtime_ns
    (path / f"shard-0000{index}.safetensors").unlink()
    with pytest.raises(InputError, match=f"shard-0000{index}.safetensors is missing"):
        Store(path)
    source.ensure()
    assert files(path) == before
    assert (path / "shard-00001.safetensors").stat().st_mtime_ns == modified


def test_a_text_that_ends_gives_what_it_has(tmp_path, caplog):
    source = harvest(tmp_path, text=RandomText(length=21))
    store = source.ensure()
    assert store.sequences == 21
    assert store.rows == 21 * 15
    assert "the text ended after 336 of 1024 tokens" in caplog.text
    before = files(store.path)
    (store.path / "shard-00001.safetensors").unlink()
    source.ensure()
    assert files(store.path) == before


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rows_that_are_not_finite_are_refused_or_skipped(tmp_path, dtype):
    settings = {"transformer": TinyLlama(spoilt=True), "text": RandomText(rare=NAN), "dtype": dtype}
    with pytest.raises(InputError, match=r"'model.layers.0', sequence 3, position 1 has NaN .* data.on_nonfinite=skip"):
        harvest(tmp_path, **settings).ensure()
    store = harvest(tmp_path, on_nonfinite="skip", **settings).ensure()
    assert store.manifest.counts.nonfinite == 7 * 15  # sequences 3, 13, …, 63: attention carries NaN through a whole sequence
    assert store.rows == 57 * 15
    assert store.read(HOOKS[0], 0, store.rows).float().isfinite().all()
    assert rows_of_sequences(store).tolist() == [0 if i % 10 == 3 else 15 for i in range(64)]
    assert store.has_row([2, 3]).sum(1).tolist() == [15, 0]


def test_rows_too_large_for_the_dtype_are_refused(tmp_path):
    settings = {"transformer": TinyLlama(spoilt=True), "text": RandomText(rare=LOUD), "hooks": HOOKS[:1]}
    with pytest.raises(InputError, match=r"sequence 3, position 15 is too large for torch.float16: set data.dtype=bfloat16"):
        harvest(tmp_path, dtype="float16", **settings).ensure()
    assert harvest(tmp_path, dtype="bfloat16", **settings).ensure().rows == 64 * 15


def test_sink_tokens_are_counted_and_can_be_left_out(tmp_path):
    settings = {"transformer": TinyLlama(spoilt=True), "text": RandomText(rare=LOUD)}
    counted = harvest(tmp_path, **settings).ensure()
    assert counted.rows == 64 * 15
    assert counted.manifest.counts.large_norms == {HOOKS[0]: 7, HOOKS[1]: 0}  # a norm layer stands before the second
    without = harvest(tmp_path, exclude_norm_above=10.0, **settings).ensure()
    assert without.manifest.counts.norm_above_limit == 7
    assert without.manifest.counts.large_norms == {HOOKS[0]: 7, HOOKS[1]: 0}
    for hook in HOOKS:
        statistics = without.statistics(hook)
        assert statistics.max_norm <= 10 * statistics.median_norm
        assert statistics.count == without.rows == 64 * 15 - 7


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_scale_comes_from_the_rows_that_are_kept(tmp_path, dtype):
    settings = {"transformer": TinyLlama(spoilt=True), "text": RandomText(rare=LOUD), "dtype": dtype}
    plain = harvest(tmp_path, dtype=dtype).ensure()  # the same text without the 7 loud tokens
    scales = []
    for limit in (None, 10.0):
        store = harvest(tmp_path, exclude_norm_above=limit, **settings).ensure()
        scales.append(float(cached(str(store.path), batch_size=32).scale[0][0]))
        kept = store.read(HOOKS[0], 0, store.rows).float().double()
        assert scales[-1] == pytest.approx(float(kept.square().sum(1).mean()) ** 0.5)
    assert scales[0] > 1e5 * scales[1]  # the embedding of a loud token is 1e8 times larger
    assert scales[1] == pytest.approx(plain.statistics(HOOKS[0]).mean_square_norm ** 0.5, rel=0.02)
    for hook in HOOKS:  # a row is out at every hook point, whichever it was large at
        assert store.read(hook, 0, store.rows).values.shape[0] == 64 * 15 - 7
    assert store.has_row(range(64))[:, -1].tolist() == [i % 10 != 3 for i in range(64)]


def test_the_median_does_not_depend_on_the_shards(tmp_path):
    big = harvest(tmp_path / "big", max_tokens=16_384, shard_rows=16_384).ensure()
    small = harvest(tmp_path / "small", max_tokens=16_384, shard_rows=1024, forward_batch_size=64).ensure()
    assert len(small.manifest.shards) == 16
    norms = big.read(HOOKS[0], 0, 8192).float().double().norm(dim=1)
    for store in (big, small):
        assert abs(store.statistics(HOOKS[0]).median_norm / float(norms.median()) - 1) < 1e-6


def test_special_tokens_are_left_out_and_that_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        store = harvest(tmp_path).ensure()
    assert "left out: 64 special tokens (ids [0, 1])" in caplog.text
    with safe_open(store.path / "shard-00000.safetensors", framework="pt") as file:
        assert BOS not in file.get_tensor(names.TOKEN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 15}, "data.max_tokens=15 is less than one sequence"),
        ({"context_length": 65}, "data.context_length=65 is more than tiny can read: at most 64"),
        ({"context_length": 0}, "data.context_length is 0"),
        ({"dtype": "int4"}, "data.dtype is 'int4': choose one of float16, bfloat16, float32, int8"),
        ({"exclude_norm_above": 0.5}, "data.exclude_norm_above is 0.5"),
        ({"hooks": []}, "data.hooks is"),
        ({"hooks": ["model.layers.7"]}, "model.layers.7"),
        ({"stores": Path(__file__)}, r"cannot write into .*: set paths.stores to a folder of yours"),
        ({"max_tokens": 10**16}, r"the activations need \d+ MB and the disk of"),
        ({"text": RandomText(length=0)}, "the text 'random' gives no row"),
        ({"text": RandomText(highest=90)}, "tokenised for another transformer"),
    ],
)
def test_bad_input_is_one_line(tmp_path, settings, message):
    with pytest.raises(InputError, match=message) as error:
        harvest(settings.pop("stores", tmp_path / "stores"), **settings).ensure()
    assert "\n" not in str(error.value)


def test_what_stops_a_harvest_is_known_before_weights_are_loaded(tmp_path):
    transformer = TinyLlama()
    for settings in ({"max_tokens": 10**16}, {"hooks": ["nowhere"]}, {"context_length": 65}):
        with pytest.raises(InputError):
            harvest(tmp_path / "stores", transformer=transformer, **settings).widths()
    assert transformer.loads == 0
    assert not (tmp_path / "stores").exists()


def test_a_full_disk_keeps_what_was_written(tmp_path, monkeypatch):
    import sae_lightning.data.writer as writer

    whole = harvest(tmp_path / "whole").ensure()
    source = harvest(tmp_path / "full")
    saved = []

    # No small disk can be mounted without privileges: the third shard's write fails as it does on one.
    def save_file(tensors, path):
        saved.append(path)
        if len(saved) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    real = writer.save_file
    monkeypatch.setattr(writer, "save_file", save_file)
    with pytest.raises(InputError, match=r"the disk is full .*shard-00002.safetensors"):
        source.ensure()
    assert sorted(path.name for path in source.path.glob("shard*")) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    monkeypatch.undo()
    assert files(source.ensure().path) == files(whole.path)
    assert len(saved) == 3
