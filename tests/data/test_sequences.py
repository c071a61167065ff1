"""Batches of the sequences that training rows come from."""

from pathlib import Path

import torch

from sae_lightning.data.datamodule import ActivationDataModule
from sae_lightning.data.store import ExistingStore
from tests.data.tiny import BOS, LOUD, RandomText, TinyLlama, harvest


def test_each_pass_has_every_training_sequence_once_and_no_other(tmp_path: Path) -> None:
    store = harvest(tmp_path).ensure()

    def source(seed: int) -> ActivationDataModule:
        return ActivationDataModule(ExistingStore(store.path), "model.layers.0", batch_size=32, validation_rows=100, seed=seed)

    data = source(0)
    training = store.tokens(sorted({*range(64)} - {*data.parts.validation.tolist()})).long()
    held_out, _ = data.tokens_held_out(64)
    n = len(training)
    assert n + len(held_out) == 64
    one, two = torch.cat([data.tokens_train(i, 3)[0] for i in range(2 * n)])[: 2 * n].split(n)
    assert not torch.equal(one, two)
    for whole_pass in (one, two):
        assert sorted(whole_pass.tolist()) == sorted(training.tolist())
    assert torch.equal(source(0).tokens_train(7, 3)[0], data.tokens_train(7, 3)[0])  # whatever was asked before
    assert not torch.equal(source(1).tokens_train(7, 3)[0], data.tokens_train(7, 3)[0])
    assert len(data.tokens_train(0, 3 * n)[0]) == 3 * n


def test_what_gave_no_row_is_special_and_a_sequence_without_any_is_left_out(tmp_path: Path) -> None:
    text = RandomText(rare=LOUD)
    store = harvest(tmp_path, transformer=TinyLlama(spoilt=True), text=text, dtype="float16", on_nonfinite="skip").ensure()
    data = ActivationDataModule(ExistingStore(store.path), "model.layers.0", batch_size=32)
    ids, special = data.tokens_train(0, len(data.sequences.sequences))
    assert special[:, 0].all()
    assert torch.equal(special, (ids == BOS) | (ids == LOUD))
    assert (ids == LOUD).any()
