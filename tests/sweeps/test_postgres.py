"""Sweepers on several machines and one study, in a real PostgreSQL."""

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from threading import Timer
from typing import Any

import optuna
import pytest

from sae_lightning.errors import AwayError
from sae_lightning.sweeps import storage
from sae_lightning.sweeps.storage import Storage, open_storage
from tests.forks import forks, train
from tests.sweeps.study import SEARCH, said
from tests.test_signals import wait_for

TRIALS = 5
pgserver = pytest.importorskip("pgserver")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
        yield server
        server.cleanup()


@pytest.fixture(scope="module")
def url(server: Any) -> str:
    return server.get_uri()


def stop(server: Any) -> None:
    """As its machine does that is shut down: whoever is connected is thrown out."""
    os.kill(server.get_pid(), signal.SIGINT)
    while (server.pgdata / "postmaster.pid").exists():
        time.sleep(0.01)


def start(server: Any) -> None:
    """pgserver gives it ten seconds, which a busy machine may exceed; it goes on starting, and is found by the next look."""
    for _ in range(11):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return server.ensure_postgres_running()
    return server.ensure_postgres_running()


def escaped(url: str) -> str:
    return url.replace("=", "\\=")


# Slow: six trainings, and the schema of a database.
@pytest.mark.slow
@forks
def test_two_machines_share_a_study(tmp_path, url):
    roots = [tmp_path / name for name in ("one", "other")]
    sweepers = []
    for root in roots:
        root.mkdir()
        sweepers.append(train(f"{SEARCH} sweep.n_trials={TRIALS} sweep.storage={escaped(url)}", root))
    for sweeper, root in zip(sweepers, roots, strict=True):
        sweeper.join()
        assert sweeper.exitcode == 0, (root / "err").read_text()
    optuna.logging.set_verbosity(logging.WARNING)
    trials = optuna.load_study("s", url).trials
    trained = [trial for trial in trials if "surplus" not in trial.user_attrs]
    assert [trial.number for trial in trained] == list(range(TRIALS))
    assert {trial.state.name for trial in trained} <= {"COMPLETE", "PRUNED"}
    assert len({str(trial.params) for trial in trained}) == TRIALS
    assert all(trial.state.name == "FAIL" and not trial.params for trial in trials[TRIALS:])
    folders = [path.name.split("-")[0] for root in roots for path in (root / "multirun/s").glob("*-topk-*")]
    assert sorted(folders) == [str(number) for number in range(TRIALS)]
    assert all(any((root / "multirun/s").glob("*-topk-*")) for root in roots)  # both of them took part


def test_of_two_that_take_over_a_trial_one_has_it(url):
    one, other = open_storage(url), open_storage(url)
    trial = one.begin(one.create_new_study("taken"), {"owner": "before"})
    assert [one.exchange(trial, "owner", "before", "a"), other.exchange(trial, "owner", "before", "b")] == [True, False]
    assert other.get_trial(trial).system_attrs == {"owner": "a"}
    assert abs(one.now() - time.time()) < 60


def test_trials_come_by_their_number(url):
    kept = open_storage(url)
    study = kept.create_new_study("in order")
    trials = [kept.begin(study, {"owner": ""}) for _ in range(60)]
    for trial in trials[:40]:  # PostgreSQL writes a changed row elsewhere, where there is room
        kept.set_trial_state(trial, optuna.trial.TrialState.COMPLETE)
    assert [trial.number for trial in kept.get_all_trials(study)] == list(range(60))


def test_a_server_that_is_away_is_waited_for(server, url, caplog):
    patient, impatient = Storage(url, (0.05,) * 2400), Storage(url, (0.05,))
    study = patient.create_new_study("waited for")
    patient.begin(study, {})
    stop(server)
    with pytest.raises(AwayError, match=r"^sweep\.storage=postgresql://\S+ does not answer \(.*\); type the same command"):
        impatient.get_all_trials(study)
    again = Timer(0.5, start, (server,))
    again.start()
    assert len(patient.get_all_trials(study)) == 1
    again.join()
    told = [record.message.split(" ", 1)[1].split(" (")[0] for record in caplog.records if record.name == storage.__name__]
    assert told == ["does not answer", "does not answer", "answers again"]
    assert len(impatient.get_all_trials(study)) == 1


# Slow: a search, and a server that is started again.
@pytest.mark.slow
@forks
def test_a_server_that_is_away_while_a_run_is_trained(tmp_path, server, url):
    words = f"{SEARCH} sweep/pruner=none sweep.name=away sweep.n_trials=1 sweep.storage={escaped(url)}"
    sweeper = train(f"{words} trainer.max_steps=600 trainer.val_check_interval=150 callbacks.last.every_n_steps=50", tmp_path)
    wait_for(lambda: list(tmp_path.glob("multirun/away/0-*/checkpoints/previous.ckpt")), sweeper)
    stop(server)
    wait_for(lambda: "does not answer" in said(tmp_path), sweeper)
    start(server)
    sweeper.join()
    assert sweeper.exitcode == 0, (tmp_path / "err").read_text()
    (trial,) = optuna.load_study("away", url).trials
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    assert trial.state.name == "COMPLETE"
    assert "Traceback" not in said(tmp_path)
