"""What a researcher may expect: true directions found, and L0 where it was asked for."""

from pathlib import Path

import pytest

from sae_lightning.data.synthetic import SyntheticDataModule
from sae_lightning.evaluation.recovery import Recovery
from tests.runs import fit

REFERENCE = (
    "data.d=128 data.n_directions=512 data.l0=10 data.batch_size=1024 dictionary.d_sae=1024 dictionary.expansion_factor=null "
    "optimizer.lr=3e-3 callbacks=none"
)


def scores(words: str, folder: Path) -> dict[str, float]:
    """L0 and explained variance of the exported SAE on held-out rows, and what it found."""
    run = fit(f"{words} trainer.accelerator=cpu trainer.val_check_interval=100000", folder)
    sae = run.module.inference()
    error = variance = l0 = rows = 0.0
    batches = list(run.data.held_out())
    mean = sum(batch.x.sum(0) for batch in batches) / sum(len(batch.x) for batch in batches)
    for batch in batches:
        latents = sae.encode(batch.x)
        error += float((batch.x - sae.reconstruct(batch.x, latents)).square().sum())
        variance += float((batch.x - mean).square().sum())
        l0, rows = l0 + float(latents.l0_per_row().sum()), rows + len(batch.x)
    found = Recovery()(sae, run.data)["recovery"] if isinstance(run.data, SyntheticDataModule) else float("nan")
    found_by_any = float((run.data.directions @ sae.W_dec.T).max(1).values.gt(0.9).double().mean()) if found == found else float("nan")
    theta = getattr(run.module.sae, "threshold", None)
    return {"l0": l0 / rows, "explained_variance": 1 - error / variance, "recovery": found, "found": found_by_any, "theta": theta}


# Slow: trains 3000 steps. The rows and the length are those that the figures of other libraries were measured on.
@pytest.mark.slow
@pytest.mark.parametrize("model", ["topk model.k=12", "lagrangian model.target_l0=12"])
def test_the_reference_rows_are_explained_and_their_directions_found(model: str, tmp_path: Path) -> None:
    got = scores(f"model={model} {REFERENCE} trainer.max_steps=3000", tmp_path)
    assert got["found"] >= 0.97
    assert got["recovery"] >= 0.97
    assert got["explained_variance"] >= 0.88
    assert abs(got["l0"] / 12 - 1) < 0.02


# Slow: trains 1000 steps.
@pytest.mark.slow
@pytest.mark.parametrize("target", [4, 8, 16, 32])
def test_l0_lands_on_its_target_on_known_directions(target: int, tmp_path: Path) -> None:
    got = scores(f"model=lagrangian model.target_l0={target} {REFERENCE} trainer.max_steps=1000", tmp_path)
    assert abs(got["l0"] / target - 1) < 0.05
