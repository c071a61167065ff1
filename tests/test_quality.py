"""What a researcher may expect: true directions found, and L0 where it was asked for, measured on the exported SAE and held-out rows."""

import os
from pathlib import Path

import lightning as L
import pytest

from sae_lightning.data.synthetic import SyntheticDataModule
from sae_lightning.evaluation.reconstruction import Reconstruction
from sae_lightning.evaluation.recovery import Recovery
from sae_lightning.metrics.reconstruction_error import ReconstructionError
from sae_lightning.metrics.sparsity import Sparsity
from sae_lightning.module import SAEModule
from tests.runs import compose

pytestmark = pytest.mark.usefixtures("unchecked")
REFERENCE = "data.d=128 data.n_directions=512 data.l0=10 data.batch_size=1024 dictionary.d_sae=1024 dictionary.expansion_factor=null optimizer.lr=3e-3"
"""The small reference rows of the field's comparison, on which other libraries were measured."""
DEMO_STORE = f"data=sampled_text data.max_tokens=100_000 data.batch_size=512 optimizer.lr=3e-3 data.transformer.cache={os.environ['SAE_LIGHTNING_TEST_CACHE']}"


class Start(L.Callback):
    """What the SAE was before the first step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        self.sae = pl_module.inference()


def scores(words: str, folder: Path) -> dict[str, float]:
    from sae_lightning.run.build import build

    run = build(compose(f"{words} callbacks=none trainer.accelerator=cpu trainer.val_check_interval=100000", folder))
    run.trainer.callbacks.append(start := Start())  # type: ignore[attr-defined]
    run.fit()
    sae, before = run.module.export(), start.sae.threshold
    got = Reconstruction({"error": ReconstructionError(), "sparsity": Sparsity()})(sae, run.data)
    if isinstance(run.data, SyntheticDataModule):
        got |= Recovery()(sae, run.data)
    if before is not None and sae.threshold is not None:
        got["theta_moved"] = float((sae.threshold - before).abs().mean() / before.mean())
    return got


# Slow: trains 3000 steps, the length that the figures of other libraries were measured with.
@pytest.mark.slow
@pytest.mark.parametrize("model", ["topk model.k=12", "lagrangian model.target_l0=12"])
def test_the_reference_rows_are_explained_and_their_directions_found(model: str, tmp_path: Path) -> None:
    got = scores(f"model={model} {REFERENCE} trainer.max_steps=3000", tmp_path)
    assert got["recovery"] >= 0.97
    assert got["explained_variance"] >= 0.88
    assert abs(got["l0"] / 12 - 1) < 0.02


# Slow: trains 400 steps on a store that the first one harvests.
@pytest.mark.slow
@pytest.mark.parametrize("target", [8, 16, 32])
def test_l0_lands_on_its_target_on_a_transformers_rows(target: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    stores = tmp_path_factory.getbasetemp() / "stores"
    got = scores(f"model=lagrangian model.target_l0={target} {DEMO_STORE} paths.stores={stores} trainer.max_steps=400", tmp_path)
    assert abs(got["l0"] / target - 1) < 0.05
    assert got["explained_variance"] > 0.8
    assert got["theta_moved"] > 0.05
