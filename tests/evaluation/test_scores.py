"""Units of all numbers that the evaluations of conf/ give."""

import json
from pathlib import Path

import pytest

from tests.runs import SMALL, compose


def test_every_number_of_a_run_has_a_unit(tmp_path: Path):
    from sae_lightning.evaluation.run import evaluate
    from sae_lightning.run.build import build_data, build_evaluations, build_sae

    cfg = compose(f"{SMALL} model.k=4", tmp_path)
    data = build_data(cfg)
    sae = build_sae(cfg, data).to_inference()
    evaluate(sae, data, build_evaluations(cfg), tmp_path)
    units = json.loads((tmp_path / "scores.json").read_text())["units"]
    assert {"explained_variance", "l0", "dead_pct", "redundancy_max_cosine", "above_1e-1_explained_variance", "recovery_f1"} <= units.keys()
    assert [name for name, unit in units.items() if unit is None] == []


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("delta_ce_at_position_00004", "nats"),
        ("kl_at_model.layers.1", "nats"),
        ("explained_variance_at_model.layers.1", "share"),
        ("l0_of_token_quartile_2", "latents"),
        ("above_1e-1", "latents"),
        ("above_1e-1_share_of_l0", "share"),
        ("probing_raw_accuracy", "share"),
        ("probing_accuracy_20", "share"),
        ("absorption_silent", "share"),
        ("ce_unigram", "nats"),
        ("perplexity", "tokens per choice"),
        ("my_number", None),
    ],
)
def test_units(name: str, unit: str | None):
    from sae_lightning.evaluation.units import unit as of

    assert of(name) == unit


def test_scores_that_are_none(tmp_path: Path):
    from sae_lightning.evaluation.scores import read_scores

    assert read_scores(tmp_path / "none.json") == {}
    for text in ("{", "[1]", '{"sae": {"mse": 1}}', '{"schema": "sae_lightning.scores/1"}'):
        (tmp_path / "some.json").write_text(text)
        assert read_scores(tmp_path / "some.json") == {}
