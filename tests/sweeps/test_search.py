"""Searches with real trainings: what is pruned, what fails, what goes on."""

import json
import logging
import math

import optuna
import pytest

from sae_lightning.errors import GivenUp
from sae_lightning.sweeps import trial as of_job
from tests.forks import forks
from tests.sweeps.study import SEARCH, TINY, jobs, said, states, study, typed


@forks
def test_a_search_prunes_and_goes_on_where_it_is_typed_again(tmp_path):
    assert typed(f"{SEARCH} sweep.n_trials=4", tmp_path) == 0
    first = study(tmp_path).trials
    assert typed(f"{SEARCH} sweep.n_trials=4", tmp_path) == 0
    assert [trial.datetime_complete for trial in study(tmp_path).trials] == [trial.datetime_complete for trial in first]
    assert typed(f"{SEARCH} sweep.n_trials=6", tmp_path) == 0
    trials = study(tmp_path).trials
    assert [trial.params for trial in trials[:4]] == [trial.params for trial in first]
    assert [trial.state.name for trial in trials].count("PRUNED") >= 1
    for trial, job in zip(trials, jobs(tmp_path).values(), strict=True):
        assert job["metrics"]["val/miracle_distance"] == pytest.approx(trial.value)
        reports = trial.intermediate_values
        assert list(reports) == list(range(1, len(reports) + 1))
        if trial.state.name == "PRUNED":
            assert (job["status"], job["step"], trial.user_attrs[of_job.GIVEN_UP]) == ("given up", 10 * len(reports), len(reports))
            assert len(reports) in (1, 3)  # its rungs; the last report is none
        else:
            assert (job["status"], job["step"], len(reports)) == ("finished", 40, 4)
    best = study(tmp_path).best_trial
    assert f"best: trial {best.number}" in said(tmp_path)
    found = (tmp_path / "multirun/s/optimization_results.yaml").read_text()
    assert f"best_trial: {best.number}" in found


@forks
def test_a_study_of_another_sweep_is_refused(tmp_path):
    assert typed(f"{SEARCH} sweep.n_trials=1", tmp_path) == 0
    for words, what in (
        ("optimizer.lr=tag(log,interval(1e-5,1e-2))", "its space was"),
        ("data.batch_size=32", "data.batch_size was 64 there, and is 32 now"),
        ("sweep.metric=val/l0", "its objective was val/miracle_distance: minimize, and is val/l0: minimize now"),
        ("trainer.max_steps=50", "trainer.max_steps was 40 there"),
    ):
        assert typed(f"{SEARCH} sweep.n_trials=1 {words}", tmp_path) == 2
        assert what in said(tmp_path).splitlines()[-1]
    (tmp_path / "multirun/s/sweep.json").unlink()  # the study knows it, too
    assert typed(f"{SEARCH} sweep.n_trials=1 {words}", tmp_path) == 2
    assert what in said(tmp_path).splitlines()[-1]


@forks
def test_trials_that_fail_are_told_and_stop_the_search_when_they_are_many(tmp_path):
    words = "-m hydra/sweeper=optuna sweep/sampler=grid model.k=2,65,66,4"  # more than the 64 latents that there are
    assert typed(f"{words} {SEARCH} optimizer.lr=1e-3 sweep.max_failure_rate=0.5", tmp_path) == 0
    trials = study(tmp_path).trials
    assert sorted((trial.params["model.k"], trial.state.name) for trial in trials) == [
        (2, "COMPLETE"), (4, "COMPLETE"), (65, "FAIL"), (66, "FAIL")
    ]  # fmt: skip
    assert all("k" in trial.user_attrs["error"] for trial in trials if trial.state.name == "FAIL")
    assert typed(f"{words} {SEARCH} optimizer.lr=1e-3 sweep.max_failure_rate=0.25 sweep.name=t", tmp_path) == 2
    assert "more than sweep.max_failure_rate=0.25 allows" in said(tmp_path).splitlines()[-1]


@forks
def test_several_objectives_are_a_front(tmp_path):
    assert typed(f"{SEARCH} sweep=pareto sweep.n_trials=3", tmp_path) == 0
    assert states(tmp_path) == ["COMPLETE"] * 3
    assert all(len(trial.values) == 2 for trial in study(tmp_path).trials)
    assert "solutions:" in (tmp_path / "multirun/s/optimization_results.yaml").read_text()


@forks
def test_outside_a_search_a_run_needs_no_objective(tmp_path):
    words = " ".join(word for word in TINY.split() if not word.startswith("callbacks"))
    assert typed(f"{words} callbacks=none hydra.run.dir=run", tmp_path) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "finished"
    assert typed(f"-m hydra/sweeper=optuna {words} callbacks=none sweep.name=s sweep.n_trials=1", tmp_path) == 2
    assert "optimized_metric is 'val/miracle_distance', which validation does not log" in said(tmp_path)


@pytest.fixture
def place(tmp_path) -> of_job.Place:
    optuna.logging.set_verbosity(logging.WARNING)
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=url, study_name="s").ask()
    return of_job.Place(url, "s", 0)


def told(place: of_job.Place) -> optuna.trial.FrozenTrial:
    return optuna.load_study(place.study, place.storage).trials[0]


def train(place, monkeypatch, folder, values=None, error: BaseException | None = None) -> None:
    monkeypatch.setenv(of_job.NAME, place.text())
    with of_job.telling(folder) as tell:
        if error is not None:
            raise error
        tell(values)


def test_a_trial_hears_the_objective(place, monkeypatch, tmp_path):
    train(place, monkeypatch, tmp_path, 0.5)
    assert (told(place).state.name, told(place).value) == ("COMPLETE", 0.5)
    train(place, monkeypatch, tmp_path, 0.25)  # it has ended already
    assert told(place).value == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_a_failure(place, monkeypatch, tmp_path, value):
    train(place, monkeypatch, tmp_path, value)
    assert (told(place).state.name, told(place).user_attrs["error"]) == ("FAIL", f"the objective is {value}")


def test_a_failure_leaves_its_traceback(place, monkeypatch, tmp_path):
    with pytest.raises(KeyError):
        train(place, monkeypatch, tmp_path, error=KeyError("a bug"))
    assert (told(place).state.name, told(place).user_attrs["error"]) == ("FAIL", "KeyError: 'a bug'")
    assert "Traceback" in (tmp_path / "traceback.txt").read_text()


def test_what_is_given_up_is_pruned_and_a_signal_is_no_end(place, monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        train(place, monkeypatch, tmp_path, error=SystemExit(143))
    assert told(place).state.name == "RUNNING"
    with pytest.raises(GivenUp):
        train(place, monkeypatch, tmp_path, error=GivenUp())
    assert told(place).state.name == "PRUNED"


def test_a_rank_above_0_tells_nothing(place, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "1")
    train(place, monkeypatch, tmp_path, 0.5)
    assert told(place).state.name == "RUNNING"


@forks
def test_what_died_before_it_could_tell_is_told_by_its_record(tmp_path):
    assert typed(f"{SEARCH} sweep.n_trials=2", tmp_path) == 0
    expected = [(trial.state, trial.value) for trial in study(tmp_path).trials]
    storage = study(tmp_path)._storage._backend
    with storage.engine.begin() as connection:  # as if both had been killed between their end and their word of it
        connection.exec_driver_sql("UPDATE trials SET state = 'RUNNING', datetime_complete = NULL")
        connection.exec_driver_sql("DELETE FROM trial_values")
    before = {name: json.dumps(job) for name, job in jobs(tmp_path).items()}
    assert typed(f"{SEARCH} sweep.n_trials=2", tmp_path) == 0
    assert [(trial.state, trial.value) for trial in study(tmp_path).trials] == expected
    assert {name: json.dumps(job) for name, job in jobs(tmp_path).items()} == before


@forks
def test_the_best_settings_are_an_experiment(tmp_path):
    words = "-m hydra/sweeper=optuna model=relu data.d=16 optimizer=adamw,sgd"
    rest = SEARCH.removeprefix("-m hydra/sweeper=optuna ")
    assert typed(f"{words} {rest} sweep.n_trials=2", tmp_path) == 0
    assert typed("--config-dir multirun/s experiment=best hydra.run.dir=again", tmp_path) == 0
    best = study(tmp_path).best_trial
    folder = next((tmp_path / "multirun/s").glob(f"{best.number}-*"))
    again, first = (json.loads((path / "run.json").read_text()) for path in (tmp_path / "again", folder))
    assert again["metrics"] == first["metrics"]
