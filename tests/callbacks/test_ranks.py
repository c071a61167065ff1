"""Two processes and one: the callbacks see, write and draw the same."""

import csv
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from sae_lightning.callbacks.best import Best
from sae_lightning.callbacks.export import Export
from sae_lightning.callbacks.feature_density import FeatureDensity
from sae_lightning.callbacks.final_validation import FinalValidation
from sae_lightning.callbacks.last import Last
from sae_lightning.callbacks.learning_rate import LearningRate
from sae_lightning.callbacks.log_gradients import LogGradients
from sae_lightning.callbacks.log_trends import LogTrends
from sae_lightning.callbacks.miracle_distance import MiracleDistance
from sae_lightning.callbacks.plots import Plots
from sae_lightning.callbacks.progress_bar import ProgressBar
from sae_lightning.callbacks.resample import Resample
from sae_lightning.load import load_sae
from sae_lightning.loggers.csv import CSV
from sae_lightning.module import SAEModule


class Kill(L.Callback):
    """Some latents count as dead before step 10 ends."""

    def on_train_batch_end(self, trainer, pl_module: SAEModule, outputs, batch, batch_idx):
        if trainer.global_step == 10:
            pl_module.sae.dictionary.rows_since_fired.zero_()[:5] = 10_000


class Watched(Plots):
    """Leaves a file where a rank draws."""

    def figures(self, module, step):
        (Path(module.trainer.default_root_dir) / f"drawn{module.trainer.global_rank}").touch()
        return super().figures(module, step)


class Write(L.Callback):
    """What each rank holds after training."""

    def on_train_end(self, trainer, pl_module):
        (sums,) = (callback.sums for callback in trainer.callbacks if isinstance(callback, Plots))
        torch.save(sums, f"{trainer.default_root_dir}/sums{trainer.global_rank}.pt")
        torch.save(pl_module.state_dict(), f"{trainer.default_root_dir}/rank{trainer.global_rank}.pt")


@pytest.mark.slow  # two processes are forked, and wait for each other on every step
def test_two_ranks_are_one_process(small_run, tmp_path):
    strategies = {"one": {}, "two": {"devices": 2, "strategy": DDPStrategy(start_method="fork", forward_sync_buffers=False)}}
    curves = {}
    for name, strategy in strategies.items():
        folder = tmp_path / name
        callbacks = [
            Kill(),
            Resample([10, 20]),
            MiracleDistance(),
            FeatureDensity(8),
            Watched(),
            LearningRate(),
            LogGradients(),
            LogTrends(),
            FinalValidation(),
            ProgressBar(),
            Best(),
        ]
        callbacks += [Export(), Last(7), Write()]
        loggers = [CSV(str(folder / "metrics.csv"))]
        small_run(callbacks, steps=20, folder=folder, loggers=loggers, dead_after=5000, enable_progress_bar=True, **strategy)
        with (folder / "metrics.csv").open() as file:
            curves[name] = {(int(step), metric): float(value) for step, metric, value in list(csv.reader(file))[1:]}

    rank0, rank1 = (torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(rank0, rank1, rtol=0, atol=0)
    one = torch.load(tmp_path / "one" / "rank0.pt", weights_only=True)
    torch.testing.assert_close(rank0, one, rtol=1e-4, atol=1e-5)

    assert curves["one"][10, "sparsity/resampled"] == 5
    assert {step for step, metric in curves["one"] if metric == "sparsity/below_1e-5"} == {8, 16}
    assert {"gradients/W_enc_norm", "details/window_train_loss_avg", "train/loss", "val/l0"} <= {metric for _, metric in curves["one"]}
    assert curves["two"] == {key: pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in curves["one"].items()}
    sums = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one/sums0", "two/sums0", "two/sums1")]
    torch.testing.assert_close(sums[1], sums[2], rtol=0, atol=0)
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-3, atol=2)  # a latent may change sides by rounding
    assert [int(each["rows_with"].sum()) for each in sums] == [128, 128, 128]
    assert [sorted(path.name for path in (tmp_path / name).glob("drawn*")) for name in ("one", "two")] == [["drawn0"], ["drawn0"]]
    assert len(list((tmp_path / "two" / "plots").glob("*.png"))) == 6
    for folder in ("sae", "sae_best"):
        pair = [load_sae(str(tmp_path / name / folder)) for name in ("one", "two")]
        assert pair[0].about["step"] == pair[1].about["step"]
        torch.testing.assert_close(pair[0].W_dec, pair[1].W_dec, rtol=1e-4, atol=1e-5)
    for name in ("last", "best"):
        steps = [torch.load(tmp_path / run / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"] for run in ("one", "two")]
        assert steps[0] == steps[1]
