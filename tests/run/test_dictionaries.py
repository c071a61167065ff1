"""Transcoders and crosscoders from the command line: as typed, in and out, stopped and resumed, what is refused."""

import json
import os
from pathlib import Path

import pytest
from torch.testing import assert_close

from sae_lightning.errors import InputError
from sae_lightning.load import load_sae
from tests.architectures import KNOBS, MODELS, fitting, knob
from tests.data.tiny import HOOKS, harvest
from tests.run.test_resume_exact import WORDS, assert_same_runs, killed_and_resumed, train
from tests.runs import QUIET, SMALL, WITH_CALLBACKS, compose

KINDS = {
    "transcoder": "dictionary=transcoder data.d_out=12",
    "skip": "dictionary=transcoder dictionary.skip=true data.d_out=12",
    "crosscoder": "dictionary=crosscoder data.stacked=2",
}


def scored(words: str, folder: Path) -> dict[str, dict[str, float]]:
    """A training and what follows it, in this process."""
    from sae_lightning.run.build import build
    from sae_lightning.run.finish import score

    cfg = compose(words, folder)
    run = build(cfg)
    run.fit()
    return score(cfg, run.data, folder)


# Slow: 200 steps, then every evaluation.
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_in_scores_and_an_sae_that_loads(kind: str, tmp_path: Path) -> None:
    words = f"model=topk model.k=4 {SMALL} {KINDS[kind]} callbacks=[default,resample] {QUIET} callbacks.last.every_n_steps=20"
    scores = scored(f"{words} trainer.max_steps=200 dictionary.dead_after=640 optimizer.lr=3e-3", tmp_path)
    assert scores.keys() == {"sae"}  # null models are autoencoders
    own, sae = scores["sae"], load_sae(tmp_path)
    about = json.loads((tmp_path / "sae" / "sae.json").read_text())["about"]
    widths = [16, 16] if kind == "crosscoder" else [16]
    assert about["widths"] == {"x": widths, "y": widths if kind == "crosscoder" else [12]}
    assert about["views"] == ("stack" if kind == "crosscoder" else "pair")
    assert (sae.W_enc.shape[1], sae.W_dec.shape[1]) == (sum(about["widths"]["x"]), sum(about["widths"]["y"]))
    assert (sae.W_skip is not None) == (kind == "skip")
    if sae.W_skip is not None:
        assert sae.W_skip.shape == (12, 16)
        assert float(sae.W_skip.abs().sum()) > 0
    assert own["explained_variance"] > 0.2
    assert own["recovery_mean_cosine"] > own["recovery_chance_mean_cosine"]


# Slow: two short trainings of every architecture.
@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("model", MODELS)
def test_the_knob_moves_l0_the_right_way(model: str, tmp_path: Path) -> None:
    """Of every second architecture as a transcoder, of the others as a crosscoder."""
    parameter, kind, found = knob(model), ["transcoder", "crosscoder"][MODELS.index(model) % 2], []
    for value in (KNOBS[parameter][0], KNOBS[parameter][-1]):
        words = f"model={model} model.{parameter}={value} {SMALL} {KINDS[kind]} callbacks=none optimizer.lr=3e-3"
        run = train(words, tmp_path / str(value))
        found.append(float(run.module.inference().encode(next(iter(run.data.held_out())).x).l0_per_row().double().mean()))
    assert found[1] > 1.3 * found[0], (kind, found)


# Slow: a harvest and three trainings.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_a_resumed_run_is_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    """On a store of two hook points; latents are resampled before and after the kill."""
    source = harvest(tmp_path / "stores")
    source.ensure()
    more = "dictionary.skip=true" if kind == "transcoder" else ""
    words = f"model=lagrangian model.target_l0=4 dictionary={kind} {more} {WORDS} data.store={source.path} callbacks.last.every_n_steps=1"
    run = train(words, tmp_path / "whole")
    assert run.data.hooks == (((HOOKS[0],), (HOOKS[1],)) if kind == "transcoder" else (tuple(HOOKS), tuple(HOOKS)))
    killed_and_resumed(words, tmp_path / "run", 14)
    assert_same_runs(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["lagrangian", "topk"])
def test_a_new_run_starts_as_the_same_function(model: str, kind: str, tmp_path: Path) -> None:
    words = f"model={model} {fitting(model)} {KINDS[kind]}"
    old = train(f"{words} {WITH_CALLBACKS}", tmp_path / "old")
    nothing = "callbacks=none optimizer.lr=0 trainer.max_steps=1 trainer.val_check_interval=1 trainer.log_every_n_steps=1"
    new = train(f"{words} {SMALL} {nothing} model.init_from={tmp_path / 'old'} data.scale=sqrt_d", tmp_path / "new")
    x = next(iter(old.data.held_out())).x
    assert_close(new.module.inference()(x), load_sae(tmp_path / "old")(x), rtol=1e-3, atol=1e-3)


def test_another_kind_is_no_start(tmp_path: Path) -> None:
    from sae_lightning.run.build import build

    train(f"model=topk model.k=4 dictionary=transcoder data.d_out=16 {WITH_CALLBACKS}", tmp_path / "old")
    for more, says in (
        ("", "it is a transcoder, this run trains an autoencoder: choose the dictionary that it is"),
        ("dictionary=crosscoder", "it is a transcoder, this run trains a crosscoder"),
        ("dictionary=transcoder data.d_out=7", "it reads rows of width 16 and writes 16, this run's are 16 and 7"),
    ):
        with pytest.raises(InputError) as refused:
            build(compose(f"model=topk model.k=4 {SMALL} {more} model.init_from={tmp_path / 'old'}", tmp_path / "new"))
        assert says in str(refused.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("dictionary=transcoder data.views=one", "this dictionary needs data.views=pair, and data gives one"),
        ("data.views=pair", "this dictionary needs data.views=one, and data gives pair"),
        ("model=pca dictionary=crosscoder", "choose dictionary=autoencoder"),
        ("model=random_dictionary dictionary=transcoder", "choose dictionary=autoencoder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(words: str, says: str, tmp_path: Path) -> None:
    from sae_lightning.run.build import build

    with pytest.raises(InputError) as refused:
        build(compose(words, tmp_path))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("dictionary.skip=true", "dictionary.skip belongs to dictionary=transcoder"),
        ("dictionary=transcodr", "did you mean dictionary=transcoder?"),
        ("data.hook_out=a", "data.hook_out belongs to"),
        ("data.views=two", "data.views must be one of"),
    ],
)
def test_typing_mistakes_have_an_answer(words: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        compose(words, tmp_path)
    assert says in str(refused.value)


def test_the_name_of_a_run_says_what_it_is(tmp_path: Path) -> None:
    from sae_lightning.run.folder import run_name

    assert (
        run_name(compose("dictionary=transcoder dictionary.d_sae=64 dictionary.expansion_factor=null", tmp_path))
        == "topk-transcoder-k16-F64-s0"
    )
    assert run_name(compose("dictionary=crosscoder", tmp_path)) == "topk-crosscoder-k16-x8-s0"  # the width is that of all hook points
    assert run_name(compose("dictionary=transcoder", tmp_path)) == "topk-transcoder-k16-F1024-s0"


# Slow: a real transformer writes its text, reads it, and is spliced, for each kind.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_on_a_real_transformer_as_typed(kind: str, tmp_path: Path) -> None:
    words = (
        f"model=topk dictionary={kind} data=sampled_text data.max_tokens=65536 paths.stores={tmp_path / 'stores'} "
        f"paths.transformers={os.environ['SAE_LIGHTNING_TEST_CACHE']} data.batch_size=512 trainer.max_steps=100 trainer.val_check_interval=100 "
        f"dictionary.expansion_factor=4 optimizer.lr=3e-3 {QUIET} evaluate.downstream.max_tokens=2048"
    )
    own = scored(words, tmp_path / "run")["sae"]
    about = load_sae(tmp_path / "run").about
    hooks = ["model.layers.0", "model.layers.1", "model.layers.2"]
    wanted = {"x": ["model.layers.1.mlp:in"], "y": ["model.layers.1.mlp"]} if kind == "transcoder" else {"x": hooks, "y": hooks}
    assert about["hooks"] == wanted
    assert about["transformer"]["name"] == "glassllm"
    assert about["data"]["context_length"] == 128
    assert about["data"]["text"]["text"] == "sampled"
    assert own["explained_variance"] > 0.2
    assert own["ce_clean"] < own["ce_sae"] < own["ce_ablated"]
    assert 0 < own["ce_recovered"] < 1
