"""SIGTERM of a sweeper, as a scheduler sends it: its runs stop with a checkpoint, and their trials are free for whoever comes first."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sae_lightning.sweeps import processes
from tests.forks import forks, train
from tests.runs import ROOT
from tests.sweeps.forked import Forked
from tests.sweeps.study import SEARCH, jobs, said, states, study, typed
from tests.test_signals import wait_for

WORDS = f"{SEARCH} sweep/pruner=none sweep.n_trials=1 trainer.max_steps=600 trainer.val_check_interval=150 callbacks.last.every_n_steps=50"


# Slow: a search is stopped in the middle of its training, and begun again.
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "processes"])
@forks
def test_trials_are_left_at_once_and_gone_on_with(tmp_path, monkeypatch, launcher):
    monkeypatch.setattr(processes, "Popen", Forked)
    words = f"{WORDS} hydra/launcher={launcher}"
    sweeper = train(words, tmp_path)
    wait_for(lambda: list(tmp_path.glob("multirun/s/0-*/checkpoints/previous.ckpt")), sweeper)
    os.kill(sweeper.pid, signal.SIGTERM)
    sweeper.join(60)
    assert sweeper.exitcode == 143
    (job,) = jobs(tmp_path).values()
    assert job["status"] == "interrupted"
    signs = {name: value for name, value in study(tmp_path).user_attrs.items() if name.startswith("alive")}
    assert list(signs.values()) == [0]
    assert states(tmp_path) == ["RUNNING"]
    assert typed(words, tmp_path) == 0, said(tmp_path)
    assert "trial 0 is gone on with" in said(tmp_path)
    assert states(tmp_path) == ["COMPLETE"]
    (again,) = jobs(tmp_path).values()
    assert [part["step"] for part in again["before"]] == [job["step"]]
    assert list(study(tmp_path).trials[0].intermediate_values) == [1, 2, 3, 4]


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The variables of a task, and the two of Slurm's commands that it calls: one that runs what it is given, one that writes it down."""
    commands = {"srun": 'while [ "${1#--}" != "$1" ]; do shift; done\n"$@"', "scontrol": f'echo "$@" >> {tmp_path}/said'}
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    task = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "8"}
    return os.environ | {"PATH": path} | task


def test_a_task_of_an_array_is_a_search(tmp_path, slurm):
    words = ["model=lagrangian", "sweep.dry_run=true", f"paths.multirun={tmp_path}"]
    done = subprocess.run(["bash", "docs/sweep.sbatch", *words], cwd=ROOT, env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "model.target_l0: 4 to 64" in done.stdout
    assert not (tmp_path / "said").exists()


@pytest.mark.parametrize(("code", "requeued"), [(143, "requeue 9_3\n"), (2, ""), (137, "")])
def test_a_task_that_was_told_to_stop_is_queued_again(tmp_path, slurm, code, requeued):
    (tmp_path / "python").write_text(f"#!/bin/bash\nexit {code}\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "said").touch()
    assert subprocess.run(["bash", "docs/sweep.sbatch"], cwd=ROOT, env=slurm).returncode == code
    assert (tmp_path / "said").read_text() == requeued
