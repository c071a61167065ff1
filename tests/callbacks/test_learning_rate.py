import csv

import lightning as L
import pytest

from sae_lightning.callbacks.learning_rate import LearningRate
from sae_lightning.loggers.csv import CSV


class Halve(L.Callback):
    """A schedule: the rate of step n is 2^−n."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 0.5 ** (trainer.global_step + 1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_is_the_rate_that_the_step_used(small_run, tmp_path, accumulate):
    logger = CSV(str(tmp_path / "metrics.csv"))
    small_run([Halve(), LearningRate()], steps=6, loggers=[logger], log_every_n_steps=2, accumulate=accumulate, enable_checkpointing=False)
    logger.save()
    with (tmp_path / "metrics.csv").open() as file:
        rates = {int(step): float(value) for step, metric, value in list(csv.reader(file))[1:] if metric == "details/learning_rate"}
    assert rates == {2: 0.25, 4: 0.0625, 6: 0.015625}


def test_needs_no_logger_and_no_schedule(small_run):
    trainer, _ = small_run([LearningRate()], steps=2, enable_checkpointing=False)
    assert trainer.global_step == 2
