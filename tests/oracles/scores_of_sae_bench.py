"""SAEBench's core evaluation of an SAE that we exported, beside our own scores of it, on the same sequences. `make oracles` runs it."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.testing import assert_close

from sae_lightning.formats import write
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import load_sae
from sae_lightning.run.build import build
from sae_lightning.run.finish import score
from sae_lightning.transformers.hooks import splice
from tests.runs import compose

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".peers/sae_bench/bin/python"
WORDS = (
    "model=jumprelu model.target_l0=16 data=sampled_text data.dtype=float32 data.max_tokens=65536 data.batch_size=512 trainer.max_steps=200 "
    "optimizer.lr=1e-3 dictionary.expansion_factor=4 evaluate=[reconstruction,downstream]"
)
NAMES = {
    "l0": "l0", "l1": "l1", "cossim": "cosine", "relative_reconstruction_bias": "relative_reconstruction_bias", "ce_loss_with_sae": "ce_sae",
    "ce_loss_without_sae": "ce_clean", "ce_loss_with_ablation": "ce_ablated", "ce_loss_score": "ce_recovered",
    "kl_div_with_sae": "kl_everywhere", "explained_variance_legacy": "explained_variance_legacy",
}  # fmt: skip
"""Theirs → ours."""


Both = tuple[Mapping[str, float], Mapping[str, Any], int]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Our scores, theirs, and the width of a row. `kl_everywhere` is also of the last position, which predicts nothing, as theirs is."""
    folder = tmp_path_factory.mktemp("sae_bench")
    words = f"{WORDS} paths.stores={folder / 'stores'}"
    cfg = compose(words, folder / "run")
    run = build(cfg)
    run.fit()
    own = score(cfg, run.data, folder / "run")["sae"]
    ids, special = run.data.tokens_held_out(10_000)
    assert not special.any()
    sae = load_sae(folder / "run")
    kl = kl_at(run.data.transformer.load(), run.data.hook, sae, ids)
    assert_close(float(kl[:, :-1].mean()), own["kl"], rtol=1e-4, atol=1e-5)
    Dataset.from_dict({"tokens": ids.tolist()}).save_to_disk(folder / "tokens")
    write(sae, folder / "sae", "saelens")
    job = {
        "transformer": str(run.data.transformer.folder.resolve()),
        "ignore": [],
        "ours": str(folder / "run"),
        "out": str(folder / "out.json"),
    }
    job |= {name: str(folder / name) for name in ("sae", "tokens")}
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.run([PYTHON, "-m", "tests.oracles.with_sae_bench", folder / "job.json"], cwd=ROOT, check=True, timeout=300)
    return own | {"kl_everywhere": float(kl.mean())}, json.loads((folder / "out.json").read_text()), sae.W_enc.shape[1]


@torch.no_grad()
def kl_at(model: Any, hook: str, sae: InferenceSAE, ids: Tensor) -> Tensor:
    """KL(clean ‖ spliced) at each position [sequences, context]."""
    clean = model(ids).logits.log_softmax(-1)
    with splice(model, hook, sae):
        spliced = model(ids).logits.log_softmax(-1)
    return (clean.exp() * (clean - spliced)).sum(-1)


# Slow: another library in a process of its own.
@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "ours"), NAMES.items())
def test_it_says_what_we_say(theirs: str, ours: str, both: Both) -> None:
    own, found, _ = both
    print(f"{ours}: ours {own[ours]:.6g}, SAEBench {found[theirs]:.6g}")
    assert_close(found[theirs], own[ours], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_its_explained_variance_by_its_own_formula(both: Both) -> None:
    """1 − E‖e‖² / (E‖x‖² − (E‖x‖²/d)²): what is subtracted is the square of a mean square, and not of the mean."""
    own, found, d = both
    square = own["mse_sum"] / own["normalised_mse"]
    assert_close(found["explained_variance"], 1 - own["mse_sum"] / (square - (square / d) ** 2), rtol=1e-5, atol=1e-5)
    assert abs(found["explained_variance"] - own["explained_variance"]) > 1e-3
