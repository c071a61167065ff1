"""Averages against the losses of every step; trends by hand."""

import lightning as L
import pytest

from sae_lightning.callbacks.log_gradients import LogGradients
from sae_lightning.callbacks.log_trends import LogTrends, trend
from sae_lightning.errors import InputError
from sae_lightning.loggers.csv import CSV
from sae_lightning.module import SAEModule
from tests.callbacks.curves import curves


class Losses(L.Callback):
    """Of every micro-batch, as the module computes them."""

    def __init__(self):
        self.found: list[float] = []

    def setup(self, trainer, pl_module: SAEModule, stage):
        plain = pl_module.compiled

        def step(x, y):
            made = plain(x, y)
            if pl_module.training:
                self.found.append(float(made.loss.detach()))
            return made

        pl_module.compiled = step


@pytest.mark.parametrize("accumulate", [1, 2])
def test_averages_are_of_all_steps(small_run, tmp_path, accumulate: int) -> None:
    losses, logger = Losses(), CSV(str(tmp_path / "metrics.csv"))
    callbacks = [losses, LogGradients(), LogTrends(window=3)]
    small_run(callbacks, steps=20, loggers=[logger], accumulate=accumulate, enable_checkpointing=False)  # logs every 5, validates every 10
    logger.save()
    logged = curves(tmp_path / "metrics.csv")

    def mean(first: int, last: int) -> float:
        values = losses.found[first * accumulate : last * accumulate]
        return sum(values) / len(values)

    for step in (5, 10, 15, 20):
        assert logged[step, "details/window_train_loss_avg"] == pytest.approx(mean(step - 5, step), rel=1e-5)
        assert logged[step, "details/epoch_train_loss_avg"] == pytest.approx(mean(0, step), rel=1e-5)
    validated = sorted(step for step, name in logged if name == "val/loss")
    assert validated == [step // accumulate for step in range(10, 20 * accumulate + 1, 10)]
    for i, step in enumerate(validated):
        seen = [logged[each, "val/loss"] for each in validated[: i + 1]]
        assert logged[step, "details/epoch_val_loss_avg"] == pytest.approx(sum(seen) / len(seen), rel=1e-5)
        before = mean(validated[i - 1] if i else 0, step)
        assert logged[step, "details/val_train_loss_ratio"] == pytest.approx(logged[step, "val/loss"] / before, rel=1e-5)
    norms = [logged[step, "gradients/norm"] for step in (10, 15, 20)]  # the last three
    assert logged[20, "gradients/norm_trend"] == pytest.approx(1000 * (norms[2] - norms[0]) / 10 / (sum(norms) / 3), rel=1e-4)
    assert (5, "gradients/norm_trend") not in logged


def test_a_trend_is_a_slope_per_thousand_steps_over_the_mean() -> None:
    assert trend((10, 20, 30), (1.0, 2.0, 3.0)) == pytest.approx(1000 * 0.1 / 2)
    assert trend((10, 20, 30), (2.0, 2.0, 2.0)) == pytest.approx(0)
    assert trend((10, 20), (0.0, 0.0)) == 0


def test_a_window_of_one_is_refused() -> None:
    with pytest.raises(InputError, match="two logged values"):
        LogTrends(window=1)
