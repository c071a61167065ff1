"""SIGKILL at random moments, of the process that searches and of the processes that train: the study ends as if there had been none.

`pytest -rP tests/sweeps/test_kills.py` prints what was killed, and when.
"""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import optuna
import pytest

from sae_lightning.sweeps import processes
from tests.forks import forks, train
from tests.sweeps.forked import Forked
from tests.sweeps.study import SEARCH, jobs, study, typed
from tests.test_kills import KILLS

TRIALS = 3
IN_PROCESS = f"{SEARCH} sweep.n_trials={TRIALS}"
PROCESSES = f"{IN_PROCESS} hydra/launcher=processes hydra.launcher.n_jobs=2"


class Whole(NamedTuple):
    """An uninterrupted search, and how long it took."""

    trials: list[tuple]
    seconds: float


def ended(root: Path) -> list[tuple]:
    return [(trial.state.name, trial.params, trial.intermediate_values, trial.value) for trial in study(root).trials]


def state(root: Path) -> str:
    """How far a search was, in words."""
    if not (root / "multirun/s/study.db").exists():
        return "before the study"
    try:
        trials = study(root).trials
    except Exception:  # killed while it was made
        return "a study half made"
    count = Counter(trial.state.name.lower() for trial in trials)
    return ", ".join(f"{n} {name}" for name, n in sorted(count.items())) or "no trial"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    root, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    assert typed(IN_PROCESS, root) == 0
    return Whole(ended(root), time.monotonic() - began)


# Slow: some thirty trainings, and twice as many beginnings of a search.
@pytest.mark.slow
@forks
def test_the_process_that_searches(tmp_path, whole):
    chance, left, number, kills = random.Random(0), Counter(), 0, 0
    while kills < KILLS:
        root = tmp_path / str(number)
        root.mkdir(exist_ok=True)
        child = train(IN_PROCESS, root)
        child.join(whole.seconds * chance.uniform(0.2, 0.9))
        if child.exitcode is None:
            child.kill()
            child.join()
            left[state(root)] += 1
            kills += 1
            continue
        assert child.exitcode == 0, (root / "err").read_text()
        number += 1
    assert typed(IN_PROCESS, tmp_path / str(number)) == 0 if (tmp_path / str(number)).exists() else True
    for root in tmp_path.iterdir():
        assert ended(root) == whole.trials
        assert sorted(jobs(root)) == sorted(jobs(tmp_path / "0"))
    print(f"killed {kills} times, {len(list(tmp_path.iterdir()))} studies; it was at: {dict(left)}")


# Slow: some thirty trainings.
@pytest.mark.slow
@forks
def test_the_processes_that_train(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(processes, "Popen", Forked)
    chance, kills, number = random.Random(0), 0, 0
    while kills < KILLS:
        root = tmp_path / str(number)
        root.mkdir()
        search = train(PROCESSES, root)
        while search.is_alive():
            search.join(chance.uniform(0.2, 1.2))
            children = Path(f"/proc/{search.pid}/task/{search.pid}/children")
            found = children.read_text().split() if children.exists() else []
            if found and kills < KILLS:
                os.kill(int(chance.choice(found)), signal.SIGKILL)
                kills += 1
        assert search.exitcode == 0, (root / "err").read_text()
        states = [trial.state for trial in study(root).trials]
        assert len(states) == TRIALS
        assert set(states) <= {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}
        assert [one[1] for one in ended(root)] == [one[1] for one in whole.trials]
        number += 1
    print(f"killed {kills} times in {number} searches")
