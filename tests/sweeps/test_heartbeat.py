"""A trial of another machine, whose disk and processes nobody sees here: left to it while it gives a sign of life."""

import shutil
import time

import optuna
import pytest

from sae_lightning.sweeps import heartbeat, search
from sae_lightning.sweeps.heartbeat import Heartbeat
from sae_lightning.sweeps.search import OWNER
from sae_lightning.sweeps.storage import open_storage
from tests.forks import forks
from tests.sweeps.study import SEARCH, states, study, typed

THERE = "elsewhere:1:2"


# Slow: five trainings, and seconds of silence.
@pytest.mark.slow
@forks
def test_a_machine_that_falls_silent_has_left_its_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "SECONDS_LISTENING", 0.1)
    monkeypatch.setattr(heartbeat, "SECONDS_SILENT", 6)
    words = f"{SEARCH} sweep/pruner=none sweep.n_trials=2"
    assert typed(words, tmp_path) == 0
    expected = study(tmp_path).trials
    storage = open_storage(f"sqlite:///{tmp_path}/multirun/s/study.db")
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = 1")
        connection.exec_driver_sql("DELETE FROM trial_values WHERE trial_id = 2")
        connection.exec_driver_sql("DELETE FROM trial_intermediate_values WHERE trial_id = 2")
    storage.set_trial_system_attr(2, OWNER, THERE)
    shutil.rmtree(next((tmp_path / "multirun/s").glob("1-*")))
    study(tmp_path).set_user_attr(f"alive {THERE}", time.time() + 3600)  # it is heard again and again: nobody waits for its end
    assert typed(words, tmp_path) == 0
    assert states(tmp_path) == ["COMPLETE", "RUNNING"]
    study(tmp_path).set_user_attr(f"alive {THERE}", last := time.time())  # never again: nobody leaves before its trial is taken over
    assert typed(words, tmp_path) == 0
    assert time.time() - last > heartbeat.SECONDS_SILENT
    assert states(tmp_path) == ["COMPLETE"] * 2
    found = study(tmp_path).trials
    assert [(one.params, one.intermediate_values, one.value) for one in found] == [
        (one.params, one.intermediate_values, one.value) for one in expected
    ]


def test_signs_are_given_while_a_search_lasts(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/study.db"
    storage = open_storage(url)
    made = optuna.create_study(storage=storage, study_name="s")
    monkeypatch.setattr(heartbeat, "SECONDS_BETWEEN", 0.02)
    assert not Heartbeat.is_alive(made, storage, THERE)
    with Heartbeat(url, "s", THERE):
        first = made.user_attrs[f"alive {THERE}"]
        assert Heartbeat.is_alive(made, storage, THERE)
        assert wait_for(made, first) > first
    assert Heartbeat.has_left(made, THERE)


def wait_for(made, before: float | None) -> float:
    """Another sign than `before`."""
    end = time.monotonic() + 20
    while (sign := made.user_attrs.get(f"alive {THERE}")) == before:
        if time.monotonic() > end:
            pytest.fail("no sign of life")
        time.sleep(0.01)
    return sign
