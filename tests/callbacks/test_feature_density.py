from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from sae_lightning.callbacks.feature_density import FeatureDensity
from sae_lightning.callbacks.last import Last
from sae_lightning.errors import InputError
from sae_lightning.loggers.csv import CSV
from sae_lightning.module import SAEModule
from tests.callbacks.curves import curves

PNG = b"\x89PNG"


def sparsity(path: Path) -> dict[tuple[int, str], float]:
    return {key: value for key, value in curves(path).items() if key[1].startswith("sparsity/")}


class Fires(L.Callback):
    """Counts by itself, from the trained SAE before each step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module: SAEModule, batch, batch_idx):
        with torch.no_grad():
            self.steps.append(pl_module.sae.step(*pl_module.scaled(batch)).latents.dense().gt(0).sum(0))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_density_over_a_window(small_run, tmp_path, accumulate):
    fires, logger = Fires(), CSV(str(tmp_path / "metrics.csv"))
    _, module = small_run([fires, FeatureDensity(5)], steps=10, loggers=[logger], accumulate=accumulate, enable_checkpointing=False)
    logger.save()
    found = sparsity(tmp_path / "metrics.csv")
    assert {step for step, _ in found} == {5, 10}
    for window in (0, 1):
        density = sum(fires.steps[5 * accumulate * window :][: 5 * accumulate]) / (5 * accumulate * 32)
        wanted = {
            "below_1e-5": (density < 1e-5).sum(),
            "below_1e-6": (density < 1e-6).sum(),
            "above_1e-2": (density > 1e-2).sum(),
            "above_1e-1": (density > 1e-1).sum(),
            "above_1e-1_share_of_l0": density[density > 1e-1].sum() / density.sum(),
            "mean_log10_feature_sparsity": (density.double() + 1e-10).log10().mean(),
        }
        for name, value in wanted.items():
            assert found[5 * (window + 1), f"sparsity/{name}"] == pytest.approx(float(value), rel=1e-5), name
    silence = float(module.sae.dictionary.rows_since_fired.double().mean())
    assert found[10, "sparsity/mean_passes_since_fired"] == pytest.approx(silence)
    assert (tmp_path / "plots" / "log_feature_density_histogram.png").read_bytes().startswith(PNG)


def test_a_run_shorter_than_a_window_is_one_window(small_run, tmp_path):
    logger = CSV(str(tmp_path / "metrics.csv"))
    small_run([FeatureDensity(1000)], steps=7, loggers=[logger], enable_checkpointing=False)
    logger.save()
    assert {step for step, _ in sparsity(tmp_path / "metrics.csv")} == {7}


def test_a_window_goes_on_after_a_resume(small_run, tmp_path):
    for name, stops in {"whole": [20], "broken": [7, 20]}.items():
        folder, resume = tmp_path / name, None
        for steps in stops:
            logger = CSV(str(folder / "metrics.csv"))
            small_run([FeatureDensity(10), Last(100)], steps=steps, folder=folder, loggers=[logger], resume=resume)
            resume = folder / "checkpoints" / "last.ckpt"
    whole, broken = (sparsity(tmp_path / name / "metrics.csv") for name in ("whole", "broken"))
    assert whole == {key: value for key, value in broken.items() if key[0] != 7}


def test_loggers_that_take_images_get_it(small_run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small_run(
        [FeatureDensity(5)], steps=10, loggers=[TensorBoardLogger(tmp_path, name="tensorboard", version="")], enable_checkpointing=False
    )
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    images = events.Images("plots/log_feature_density_histogram")
    assert [image.step for image in images] == [5, 10]
    assert images[0].encoded_image_string.startswith(PNG)
    assert "sparsity/below_1e-5" in events.Tags()["scalars"]


def test_wandb_gets_it_offline(small_run, tmp_path):
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    small_run([FeatureDensity(5)], steps=5, loggers=[logger], enable_checkpointing=False)
    logger.experiment.finish()
    (image,) = tmp_path.glob("wandb/offline-run-*/files/media/images/plots/*.png")
    assert image.read_bytes().startswith(PNG)


def test_window_must_be_positive():
    with pytest.raises(InputError, match="feature_sampling_window is 0"):
        FeatureDensity(0)
