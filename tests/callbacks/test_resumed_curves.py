import csv
from pathlib import Path

import lightning as L
import pytest

from sae_lightning.callbacks.final_validation import FinalValidation
from sae_lightning.callbacks.last import Last
from sae_lightning.callbacks.learning_rate import LearningRate
from sae_lightning.callbacks.miracle_distance import MiracleDistance
from sae_lightning.loggers.csv import CSV


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_resumed_and_uninterrupted_runs_leave_one_file(small_run, tmp_path):
    """Everything logs to it; the first run dies behind its checkpoint, with lines of steps that will be run again."""

    class Killed(Exception): ...

    class Stop(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 17:
                for logger in trainer.loggers:
                    logger.save()
                raise Killed

    def run(name: str, *more: L.Callback, resume=None):
        callbacks = [MiracleDistance(), LearningRate(), FinalValidation(), Last(6), *more]
        settings = {"val_check_interval": 8, "log_every_n_steps": 5}
        small_run(
            callbacks, steps=25, folder=tmp_path / name, loggers=[CSV(str(tmp_path / name / "metrics.csv"))], resume=resume, **settings
        )

    run("whole")
    with pytest.raises(Killed):
        run("broken", Stop())
    assert read(tmp_path / "broken" / "metrics.csv")[-1][0] in ("15", "16")
    run("broken", resume=tmp_path / "broken" / "checkpoints" / "last.ckpt")
    whole = read(tmp_path / "whole" / "metrics.csv")
    assert read(tmp_path / "broken" / "metrics.csv") == whole
    assert {"train/loss", "val/miracle_distance", "details/learning_rate"} <= {metric for _, metric, _ in whole}
