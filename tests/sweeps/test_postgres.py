"""Sweepers on several machines and one study, in a real PostgreSQL."""

import logging
from collections.abc import Iterator

import optuna
import pytest

from tests.forks import forks, train
from tests.sweeps.study import SEARCH

TRIALS = 5
pgserver = pytest.importorskip("pgserver")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
        yield server.get_uri()
        server.cleanup()


# Slow: six trainings, and the schema of a database.
@pytest.mark.slow
@forks
def test_two_machines_share_a_study(tmp_path, url):
    roots = [tmp_path / name for name in ("one", "other")]
    sweepers = []
    for root in roots:
        root.mkdir()
        sweepers.append(train(f"{SEARCH} sweep.n_trials={TRIALS} sweep.storage={url.replace('=', chr(92) + '=')}", root))
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
