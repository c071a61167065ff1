"""Every launcher, with real trainings."""

import os
import subprocess
import sys

import pytest
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher

from sae_lightning.sweeps import processes
from sae_lightning.sweeps.jobs import launched
from tests.forks import forks
from tests.runs import ROOT
from tests.sweeps.forked import Forked
from tests.sweeps.study import SEARCH, TINY, jobs, said, states, study, typed

PROCESSES = "hydra/launcher=processes hydra.launcher.n_jobs=2"


# Slow: a transformer is loaded, and its rows are cached.
@pytest.mark.slow
@forks
def test_jobs_at_once_share_one_harvest(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "Popen", Forked)
    rows = f"data=sampled_text data.max_tokens=20_000 data.batch_size=64 data.transformer.cache={os.environ['SAE_LIGHTNING_TEST_CACHE']}"
    rest = " ".join(word for word in TINY.split() if not word.startswith("data."))
    assert typed(f"-m {PROCESSES} seed=0,1 {rest} {rows} sweep.name=s", tmp_path) == 0, said(tmp_path)
    assert [job["status"] for job in jobs(tmp_path).values()] == ["finished"] * 2
    assert sum(path.is_dir() for path in (tmp_path / "stores").iterdir()) == 1
    logs = [path.read_text() for path in (tmp_path / "multirun/s").glob("*/console.log")]
    assert len(logs) == 2
    assert sum("harvesting" in log for log in logs) == 1


# Slow: the second rank of each training is a Python of its own.
@pytest.mark.slow
@forks
def test_jobs_of_several_ranks(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert typed(f"{SEARCH} sweep.n_trials=1", tmp_path / "one") == 0
    monkeypatch.setattr(processes, "Popen", Forked)
    words = f"{SEARCH} {PROCESSES} sweep.n_trials=1 strategy=ddp trainer.devices=2"
    assert typed(words, tmp_path / "two") == 0, said(tmp_path / "two")
    (one,), (two,) = study(tmp_path / "one").trials, study(tmp_path / "two").trials
    assert (two.state.name, two.params) == ("COMPLETE", one.params)
    assert two.intermediate_values == pytest.approx(one.intermediate_values, rel=1e-3)
    assert next(iter(jobs(tmp_path / "two").values()))["words"].count("trainer.devices=2") == 1


# Slow: each training is a Python of its own, and so is the command: what is pickled here has to be found there.
@pytest.mark.slow
def test_submitit(tmp_path):
    words = f"{SEARCH} hydra/launcher=submitit_local sweep/pruner=none sweep.n_trials=2 sweep.n_jobs=2"
    command, environment = [sys.executable, ROOT / "train.py", *words.split()], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert states(tmp_path) == ["COMPLETE"] * 2
    assert {job["status"] for job in jobs(tmp_path).values()} == {"finished"}


def test_a_launcher_that_loses_a_job_says_so_in_one_line():
    class Loses(Launcher):
        def setup(self, **_):
            pass

        def launch(self, job_overrides, initial_job_idx):
            raise RuntimeError("job 7 has not produced any output\nmore of it")

    with pytest.raises(HydraException, match=r"^Loses has lost a job \(RuntimeError: job 7 has not produced any output\); type the same"):
        launched(Loses(), [["seed=0"]], 0)
