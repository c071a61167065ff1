"""What a search hears of a run: real studies, real trainings."""

import logging
from pathlib import Path

import lightning as L
import optuna
import pytest
from lightning.pytorch.strategies import DDPStrategy
from optuna.pruners import BasePruner, NopPruner

from sae_lightning.callbacks.final_validation import FinalValidation
from sae_lightning.callbacks.last import Last
from sae_lightning.callbacks.trial import ReportToTrial
from sae_lightning.errors import GivenUp, InputError
from sae_lightning.sweeps import trial as of_job


class From(BasePruner):
    """Gives up from a report on."""

    def __init__(self, number: int):
        self.number = number

    def prune(self, study, trial) -> bool:
        return (trial.last_step or 0) >= self.number


@pytest.fixture
def place(tmp_path, monkeypatch) -> of_job.Place:
    optuna.logging.set_verbosity(logging.WARNING)
    made = of_job.Place(f"sqlite:///{tmp_path}/study.db", "s", 0)
    optuna.create_study(storage=made.storage, study_name="s").ask()
    monkeypatch.setenv(of_job.NAME, made.text())
    return made


def trial(place: of_job.Place) -> optuna.trial.FrozenTrial:
    return optuna.load_study(place.study, place.storage).trials[0]


def never(reports: int) -> BasePruner:
    return NopPruner()


def test_each_validation_is_a_report_and_the_next_ones_go_on_after_a_resume(small_run, place, tmp_path):
    callback = ReportToTrial("val/l0", never)
    small_run([callback, FinalValidation(), Last(5)], steps=10, val_check_interval=5)
    assert list(trial(place).intermediate_values) == [1, 2]
    lengths = []
    callback = ReportToTrial("val/l0", lambda reports: lengths.append(reports) or NopPruner())
    small_run([callback, FinalValidation(), Last(5)], steps=18, val_check_interval=5, resume=tmp_path / "checkpoints/last.ckpt")
    assert list(trial(place).intermediate_values) == [1, 2, 3, 4]  # steps 5, 10, 15, 18
    assert lengths == [4]
    assert not callback.is_given_up


def test_reports_are_counted_in_validations_whatever_is_accumulated(small_run, place):
    small_run([ReportToTrial("val/l0", never), FinalValidation()], steps=6, val_check_interval=4, accumulate=2)
    assert list(trial(place).intermediate_values) == [1, 2, 3]  # every 2 steps of 2 batches


def test_what_is_given_up_ends_there_and_nothing_at_its_last_report(small_run, place, tmp_path):
    callback = ReportToTrial("val/l0", lambda reports: From(2))
    with pytest.raises(GivenUp, match="at step 10"):
        small_run([callback, FinalValidation(), Last(100)], steps=20, val_check_interval=5)
    assert trial(place).user_attrs[of_job.GIVEN_UP] == 2
    assert (tmp_path / "checkpoints/last.ckpt").is_file()
    callback = ReportToTrial("val/l0", lambda reports: From(3))
    trainer, _ = small_run([callback, FinalValidation()], steps=15, val_check_interval=5, enable_checkpointing=False)
    assert (trainer.global_step, callback.is_given_up) == (15, False)


class Wrote(L.Callback):
    """At which step each rank ended."""

    def on_train_end(self, trainer, pl_module):
        (Path(trainer.default_root_dir) / f"ended-{trainer.global_rank}").write_text(str(trainer.global_step))


@pytest.mark.slow  # two processes are forked, and wait for each other on every step
def test_all_ranks_stop_at_the_same_step(small_run, place, tmp_path):
    strategy = DDPStrategy(start_method="fork", forward_sync_buffers=False)
    callbacks = [ReportToTrial("val/l0", lambda reports: From(2)), FinalValidation(), Last(100), Wrote()]
    small_run(callbacks, steps=20, val_check_interval=5, devices=2, strategy=strategy)
    assert [(tmp_path / f"ended-{rank}").read_text() for rank in (0, 1)] == ["10", "10"]
    assert list(trial(place).intermediate_values) == [1, 2]


@pytest.mark.parametrize("monitor", ["val/l0", ["val/l0", "val/fvu"]])
def test_nothing_is_reported_outside_a_search_nor_of_several_objectives(small_run, place, monkeypatch, monitor):
    if isinstance(monitor, str):
        monkeypatch.delenv(of_job.NAME)
    callback = ReportToTrial(monitor, lambda reports: From(0))
    trainer, _ = small_run([callback, FinalValidation()], steps=10, val_check_interval=5)
    assert (trainer.global_step, callback.is_given_up, trial(place).intermediate_values) == (10, False, {})


def test_what_validation_does_not_log_is_refused(small_run, place):
    with pytest.raises(InputError, match=r"optimized_metric is 'val/no'.*choose one of .*val/l0"):
        small_run([ReportToTrial("val/no", never), FinalValidation()], steps=5, val_check_interval=5)
