"""Step time, throughput and waiting, of runs whose parts take a known time."""

import time

import lightning as L
import pytest

from sae_lightning.callbacks.log_time import LogTime
from sae_lightning.data.synthetic import SyntheticDataModule
from sae_lightning.errors import InputError
from sae_lightning.loggers.csv import CSV
from tests.callbacks.curves import curves

SLOW = 0.05


class SlowRows(SyntheticDataModule):
    """A batch takes four times SLOW seconds to make."""

    def train_batch(self, index, rank=0, ranks=1):
        time.sleep(4 * SLOW)
        return super().train_batch(index, rank, ranks)


class SlowSteps(L.Callback):
    """A step takes SLOW seconds, and a validation ten times that."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(SLOW)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            time.sleep(10 * SLOW)


def run(small_run, tmp_path, callbacks, rows, **settings):
    logger = CSV(str(tmp_path / "metrics.csv"))
    data = rows(d=16, n_directions=32, l0=2.0, batch_size=32, rows_held_out=128)
    small_run(callbacks, steps=10, loggers=[logger], data=data, enable_checkpointing=False, val_check_interval=4, **settings)
    logger.save()
    return curves(tmp_path / "metrics.csv")


def test_a_run_that_waits_for_its_rows(small_run, tmp_path) -> None:
    logged = run(small_run, tmp_path, [LogTime()], SlowRows)
    assert logged[10, "time/data_wait_pct"] > 50
    assert logged[10, "time/step_ms"] >= 3000 * SLOW  # a thread makes batches ahead: one or two were there already


def test_a_run_that_does_not_and_validations_are_left_out(small_run, tmp_path) -> None:
    logged = run(small_run, tmp_path, [LogTime(), SlowSteps()], SyntheticDataModule)
    assert logged[10, "time/data_wait_pct"] < 30
    assert 1000 * SLOW <= logged[10, "time/step_ms"] < 2500 * SLOW  # with the validation after step 8 it would be 3000
    assert logged[8, "time/validation_s"] >= 10 * SLOW
    assert logged[10, "time/rows_per_s"] == pytest.approx(32 * 1000 / logged[10, "time/step_ms"])
    steps_ms = 5 * logged[5, "time/step_ms"] + 5 * logged[10, "time/step_ms"]
    assert logged[10, "time/training_s"] == pytest.approx(steps_ms / 1000)


def test_a_step_of_two_micro_batches_has_the_rows_of_both(small_run, tmp_path) -> None:
    logged = run(small_run, tmp_path, [LogTime(every_n_steps=2)], SyntheticDataModule, accumulate=2)
    assert {step for step, name in logged if name == "time/step_ms"} == {2, 4, 6, 8, 10}
    assert logged[10, "time/rows_per_s"] == pytest.approx(64 * 1000 / logged[10, "time/step_ms"])


def test_a_period_below_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"log_time\.every_n_steps is -1"):
        LogTime(every_n_steps=-1)
