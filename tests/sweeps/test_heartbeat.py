"""A trial of another machine, whose disk and processes nobody sees here: left to it while it gives a sign of life."""

import shutil
import time

import pytest

from sae_lightning.sweeps import heartbeat
from sae_lightning.sweeps.heartbeat import Heartbeat
from sae_lightning.sweeps.search import OWNER
from sae_lightning.sweeps.trial import open_storage
from tests.forks import forks
from tests.sweeps.study import SEARCH, states, study, typed

THERE = "elsewhere:1:2"


@forks
def test_a_machine_that_is_silent_for_ten_minutes_has_left_its_trials(tmp_path):
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
    for silence, state in ((heartbeat.SECONDS_SILENT - 60, "RUNNING"), (heartbeat.SECONDS_SILENT, "COMPLETE")):
        study(tmp_path).set_user_attr(f"alive {THERE}", time.time() - silence)
        assert typed(words, tmp_path) == 0
        assert states(tmp_path) == ["COMPLETE", state]
    found = study(tmp_path).trials
    assert [(one.params, one.intermediate_values, one.value) for one in found] == [
        (one.params, one.intermediate_values, one.value) for one in expected
    ]


def test_signs_are_given_while_a_search_lasts(tmp_path, monkeypatch):
    import optuna

    url = f"sqlite:///{tmp_path}/study.db"
    made = optuna.create_study(storage=url, study_name="s")
    monkeypatch.setattr(heartbeat, "SECONDS_BETWEEN", 0.02)
    assert not Heartbeat.is_alive(made, THERE)
    with Heartbeat(url, "s", THERE):
        first = wait_for(made, None)
        assert Heartbeat.is_alive(made, THERE)
        assert wait_for(made, first) > first


def wait_for(made, before: float | None) -> float:
    """Another sign than `before`."""
    end = time.monotonic() + 20
    while (sign := made.user_attrs.get(f"alive {THERE}")) == before:
        if time.monotonic() > end:
            pytest.fail("no sign of life")
        time.sleep(0.01)
    return sign
