"""`data.mode=live` in a run: it trains, stops, goes on, and is evaluated."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.live import LiveDataModule
from tests.run.test_resume_exact import assert_same_runs, killed_and_resumed, train
from tests.runs import QUIET, compose
from tests.transformers.tiny_gpt2 import save_tiny_gpt2

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pool of 192 rows of a GPT-2 that reads its own samples: a period is three batches long, a pass of the text 3.8 periods."""
    folder = tmp_path_factory.mktemp("live")
    save_tiny_gpt2(folder / "gpt2")
    return (
        f"data=sampled_text data.mode=live data/transformer=hf data.transformer.name={folder}/gpt2 data.text.batch_size=32 data.stores=nowhere "
        "data.context_length=16 data.max_tokens=512 data.batch_size=32 data.pool_rows=192 data.forward_batch_size=4 data.validation_rows=64 "
        "dictionary.expansion_factor=4 dictionary.dead_after=32 trainer.max_steps=20 trainer.val_check_interval=10 trainer.log_every_n_steps=1 "
        f"trainer.accelerator=cpu {QUIET} callbacks.last.every_n_steps=1 model=topk model.k=4"
    )


def curve(folder: Path, metric: str) -> list[float]:
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return [float(value) for _, name, value in lines if name == metric]


@pytest.fixture(scope="module")
def whole(words: str, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("whole")
    return train(words, folder)


# Slow: four trainings.
@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(words: str, whole, tmp_path: Path) -> None:
    """Killed in the first period, at the end of one, in the second pass of the text: weights, curves (the fill of the pool, too), checkpoints."""
    fills = curve(whole.folder, "details/buffer_fill_pct")
    assert len(fills) == 20
    assert 49 <= min(fills) < 55
    assert 75 < max(fills) <= 100
    for cut in (2, 6, 17):
        killed_and_resumed(words, tmp_path / "run", cut)
        assert_same_runs(tmp_path / "run", whole.folder)


# Slow: three trainings through a transformer.
@pytest.mark.slow
def test_so_is_one_that_is_fine_tuned(words: str, tmp_path: Path) -> None:
    """Through the transformer that fills the pool at the same time, in another thread."""
    words = f"{words} model.loss=kl finetune.batch_tokens=64 trainer.max_steps=8 trainer.val_check_interval=4"
    train(words, tmp_path / "whole")
    killed_and_resumed(words, tmp_path / "run", 5)
    assert_same_runs(tmp_path / "run", tmp_path / "whole")


# Slow: two processes are forked, and wait for each other on every step.
@pytest.mark.slow
def test_two_ranks_are_one_process(words: str, whole, tmp_path: Path) -> None:
    train(f"{words} trainer.devices=2 trainer.strategy=ddp_fork", tmp_path)
    states = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (whole.folder, tmp_path)]
    assert states[1]["LiveDataModule"] == states[0]["LiveDataModule"]
    assert_close(states[1]["state_dict"], states[0]["state_dict"], rtol=1e-3, atol=1e-5)


def test_train_py_trains_and_evaluates(words: str, tmp_path: Path) -> None:
    """With one transformer in memory, and says what it was."""
    import train as script
    from sae_lightning.run.build import build_data

    cfg = compose(f"{words} nulls=false trainer.max_steps=6 trainer.val_check_interval=6", tmp_path)
    script.main(cfg)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["data"]["mode"] == "live"
    assert record["data"]["text"] == "sampled_text"
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]["sae"]
    assert {"explained_variance", "ce_sae", "kl", "delta_ce"} <= set(scores)
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["LiveDataModule"]
    assert state["batches_trained"] == 6
    assert set(state) == {"batches_trained", "pass", "period", "first_row"}
    assert not Path("nowhere").exists()

    again = build_data(cfg)  # as evaluate.py does
    again.setup("validate")
    assert isinstance(again, LiveDataModule)
    assert again.reading._passes.transformer.shared is again.transformer.load(again.reading.device)  # held once


def test_a_live_run_has_a_name_of_its_own() -> None:
    from sae_lightning.run.composer import Composer
    from sae_lightning.run.folder import run_name

    composer = Composer(Path(__file__).parents[2] / "conf", "train")
    names = [run_name(composer.compose(["data=sampled_text", word])) for word in ("data.mode=store", "data.mode=live")]
    assert names == ["topk-k16-x8-s0", "topk-k16-x8-live-s0"]
