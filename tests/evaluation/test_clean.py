"""What is kept of a text for every SAE after the first."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

HOOK = "model.layers.0"


@pytest.fixture
def data(rows, tiny_transformer, tmp_path: Path):
    ids = torch.randint(2, 20, (12, 10), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[3, 5] = 0, 1
    made = rows(torch.randn(20, 8), transformer=tiny_transformer, hook=HOOK, tokens=ids, special=(ids == 0) | (ids == 1))
    made.kept_in = tmp_path / "kept"
    return made


@pytest.fixture
def passes(tiny_transformer, monkeypatch):
    """How many forward passes of a batch through the last layer there were."""
    counts = [0]
    load = tiny_transformer.load

    def counting(device="cpu") -> nn.Module:
        model = load(device)

        def count(*_: object) -> None:
            counts[0] += 1

        model.model.layers[1].register_forward_pre_hook(count)
        return model

    monkeypatch.setattr(tiny_transformer, "load", counting)
    return counts


def some_sae(sae, seed: int):
    g = torch.Generator().manual_seed(seed)
    return sae(torch.randn(16, 8, generator=g), 0.3 * torch.randn(16, 8, generator=g), k=3)


def test_from_the_second_sae_on_there_is_one_pass(data, sae, passes):
    """4 batches of 3 sequences. First: clean, zeros, mean and its own; then its own, in another process, too."""
    from sae_lightning.evaluation.downstream import Downstream

    first = Downstream(batch_tokens=30)(some_sae(sae, 0), data)
    assert passes[0] == 4 * 4
    for seed in (1, 2):
        Downstream(batch_tokens=30)(some_sae(sae, seed), data)
    assert passes[0] == 4 * 4 + 2 * 4
    assert Downstream(batch_tokens=30)(some_sae(sae, 0), data) == first


def test_what_was_kept_gives_the_same_numbers(data, sae):
    from sae_lightning.evaluation.downstream import Downstream

    Downstream()(some_sae(sae, 0), data)
    kept = Downstream()(some_sae(sae, 1), data)
    data.kept_in = None
    fresh = Downstream()(some_sae(sae, 1), data)
    assert kept.keys() == fresh.keys()
    for name, value in fresh.items():
        assert_close(kept[name], value, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_another_text_or_transformer_has_a_pass_of_its_own(data, sae, passes, tiny_transformer):
    from sae_lightning.evaluation.downstream import Downstream

    Downstream()(some_sae(sae, 0), data)
    data.tokens = data.tokens.clone()
    data.tokens[0, 3] = 5
    Downstream()(some_sae(sae, 0), data)
    assert passes[0] == 2 * 4
    tiny_transformer.identity = lambda: {"name": "another"}
    Downstream()(some_sae(sae, 0), data)
    assert passes[0] == 3 * 4
    assert len([path for path in data.kept_in.iterdir() if path.is_dir()]) == 3


def test_predictions_are_the_transformers_and_so_where_it_goes_on_after_its_last_layer(data, tiny_transformer, monkeypatch, sae, passes):
    """Such as Gemma, which bends its logits: these are read anew for each SAE."""
    from sae_lightning.evaluation.downstream import Downstream

    load = tiny_transformer.load

    def bent(device="cpu") -> nn.Module:
        model = load(device)

        def bend(module, args, output):
            output.logits = 3 * torch.tanh(output.logits / 3)
            return output

        model.register_forward_hook(bend)
        return model

    monkeypatch.setattr(tiny_transformer, "load", bent)
    first = Downstream()(some_sae(sae, 0), data)
    assert passes[0] == 4 + 1  # and once more for its predictions
    model, counted = bent(), ~(data.special[:, 1:] | data.special[:, :-1])
    logs = model(input_ids=data.tokens).logits[:, :-1].log_softmax(-1).gather(2, data.tokens[:, 1:, None])[..., 0]
    assert_close(first["ce_clean"], float(-logs[counted].mean()), rtol=1e-5, atol=1e-5)
    again = Downstream()(some_sae(sae, 0), data)
    assert_close(again["kl"], first["kl"])


def test_a_folder_that_cannot_be_written_is_a_warning(data, sae, tmp_path: Path, caplog):
    from sae_lightning.evaluation.downstream import Downstream

    (tmp_path / "kept").write_text("a file where the folder should be")
    values = Downstream()(some_sae(sae, 0), data)
    assert values["kl"] > 0
    assert "cannot be kept" in caplog.text


def test_a_process_that_was_killed_while_it_wrote_leaves_nothing_that_is_taken_for_whole(data, sae, monkeypatch):
    from sae_lightning.evaluation import clean
    from sae_lightning.evaluation.downstream import Downstream

    whole = clean.write_json

    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(clean, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        Downstream()(some_sae(sae, 0), data)
    assert [path.name for path in data.kept_in.iterdir() if path.is_dir()] == []
    monkeypatch.setattr(clean, "write_json", whole)
    assert Downstream()(some_sae(sae, 0), data)["kl"] > 0
    assert [name for name in os.listdir(data.kept_in) if not name.endswith(".lock")] != []
