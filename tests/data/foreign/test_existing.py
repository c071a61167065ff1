"""What data.store may be, and trainings on it."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from sae_lightning.data.foreign.existing import existing
from sae_lightning.data.sources import cached
from sae_lightning.data.store import ExistingStore
from sae_lightning.errors import InputError
from tests.data.foreign.folders import CONTEXT, HOOK, WRITERS, rows_of, token_ids_of, write_npy, write_safetensors
from tests.data.tiny import HOOKS, TinyLlama, harvest
from tests.runs import QUIET, fit


def test_our_own_store_is_recognised(tmp_path):
    source = existing(harvest(tmp_path).ensure().path, tmp_path)
    assert isinstance(source, ExistingStore)


def test_what_is_none_of_these_is_refused_with_what_is_read(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("x")
    (tmp_path / "file.npy").write_bytes(b"x")
    for name, why in (("empty", "holds none of"), ("text", "holds none of"), ("nothing", "no such folder"), ("file.npy", "no such folder")):
        with pytest.raises(InputError, match=f"{name} is no activation store, .*{why}.*state.json.*.npy, .safetensors or .pt") as error:
            existing(tmp_path / name, tmp_path)
        assert "\n" not in str(error.value)


def test_a_dataset_of_splits(tmp_path):
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    with pytest.raises(InputError, match=r"is a dataset of several splits: set data.store to one of their folders"):
        existing(tmp_path, tmp_path)


WORDS = (
    "data=cached data.batch_size=32 data.pool_rows=128 data.validation_rows=40 dictionary.expansion_factor=2 trainer.max_steps=12 "
    f"trainer.val_check_interval=6 trainer.log_every_n_steps=3 trainer.accelerator=cpu callbacks.last.every_n_steps=6 {QUIET}"
)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_training_sees_every_row_that_was_written(tmp_path, kind, unchecked):
    shards = rows_of(dtype=torch.float16)
    folder = WRITERS[kind](tmp_path / HOOK, shards)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ran = fit(f"{WORDS} data.store={folder} paths.stores={tmp_path / 'stores'}", tmp_path / "run")
    data = ran.data
    assert ran.trainer.global_step == 12
    assert data.hooks.x == (HOOK,)
    assert torch.isfinite(ran.trainer.callback_metrics["val/fvu"])
    seen = torch.cat([data.shuffled.read(0, data.parts.train_rows), *(batch.x for batch in data.held_out())])
    assert_close(in_order(seen), in_order(torch.cat(shards).flatten(0, 1).float()), rtol=0, atol=0)
    assert_close(seen.double().square().sum(1).mean().item(), (data.scale[0].double()[0] ** 2).item(), rtol=1e-6, atol=0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def in_order(rows):
    return torch.from_numpy(np.unique(rows.numpy(), axis=0))


@pytest.mark.parametrize("dictionary", ["transcoder", "crosscoder"])
def test_several_hook_points(tmp_path, dictionary, unchecked):
    shards = rows_of(dtype=torch.bfloat16)
    folder = write_safetensors(tmp_path / "cache", shards, [{"later": (x * 3).half()} for x in shards])
    ran = fit(f"{WORDS} data.store={folder} paths.stores={tmp_path / 'stores'} dictionary={dictionary}", tmp_path / "run")
    batch = ran.data.train_batch(3)
    x, y = (batch.x[:, :16], batch.x[:, 16:]) if dictionary == "crosscoder" else (batch.x, batch.y)
    assert_close(y, (x * 3).half().float(), rtol=1e-2, atol=1e-2)


def test_rows_that_are_no_numbers_stop_a_run_before_its_first_step(tmp_path):
    shards = rows_of()
    shards[2][0, 0, 0] = torch.inf
    folder = write_safetensors(tmp_path / "cache", shards)
    with pytest.raises(InputError, match=r"row 0 of \S+shard_2.safetensors \(position 0 of its sequence 0\) has NaN or infinite entries"):
        fit(f"{WORDS} data.store={folder} paths.stores={tmp_path / 'stores'}", tmp_path / "run")


def test_evaluation_inside_a_transformer_is_refused_where_it_could_not_be(tmp_path):
    shards = rows_of()
    without = write_npy(tmp_path / HOOKS[0], shards)
    with pytest.raises(InputError, match=r"holds no token_ids, .*leave out data/transformer"):
        cached(str(without), 32, transformer=TinyLlama())
    for name, x, says in (
        (HOOKS[0], shards[0][..., :5], "has rows of width 5 at 'model.layers.0', tiny of 16"),
        ("blocks.0", shards[0], "blocks.0"),
    ):
        (tmp_path / name / "with").mkdir(parents=True)
        save_file({name: x.contiguous(), "token_ids": token_ids_of([x])[0]}, tmp_path / name / "with/x.safetensors")
        with pytest.raises(InputError, match=says):
            cached(str(tmp_path / name / "with"), 32, transformer=TinyLlama())
    save_file({HOOKS[0]: torch.cat(shards), "token_ids": torch.cat(token_ids_of(shards))}, tmp_path / HOOKS[0] / "with/x.safetensors")
    data = cached(str(tmp_path / HOOKS[0] / "with"), 32, validation_rows=30, transformer=TinyLlama(), stores=str(tmp_path / "stores"))
    ids, special = data.tokens_held_out(2)
    assert ids.shape == special.shape == (2, CONTEXT)
    assert not special.any()
