"""How a job of a sweep becomes a command of its own, and what it may see."""

import os
import subprocess
import sys

import pytest
from omegaconf import DictConfig, OmegaConf

from sae_lightning.errors import InputError
from sae_lightning.run.composer import Composer
from sae_lightning.sweeps.devices import visible
from sae_lightning.sweeps.processes import Processes, command
from tests.runs import ROOT

LOADER = Composer(ROOT / "conf", "train").loader


def config(*hydra: str) -> DictConfig:
    return OmegaConf.create({"hydra": {"overrides": {"hydra": list(hydra)}}})


def test_a_job_is_the_command_of_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    typed = [
        "-m",
        "--config-dir",
        "there",
        "hydra/sweeper=optuna",
        "hydra/launcher=processes",
        "hydra.launcher.n_jobs=2",
        "hydra.verbose=true",
        "model.k=4,8",
    ]
    words = ["model.k=4", 'hydra.sweep.dir="a"', 'hydra.sweep.subdir="b"', '++hydra.job.env_set.X="1"']
    made = command(config(*typed[3:7]), words, tmp_path / "x y", typed)
    assert made == [
        sys.executable, os.path.abspath("train.py"), "--config-dir", "there", "hydra.verbose=true", "model.k=4",
        f'hydra.run.dir="{tmp_path}/x y"', "hydra.mode=RUN",
    ]  # fmt: skip


def test_a_job_that_was_begun_is_the_command_of_its_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    made = command(config(), ["model.k=4", f'resume="{tmp_path}"', "hydra.output_subdir=null"], tmp_path, ["-m", "model.k=4,8"])
    assert made[2:] == [f'resume="{tmp_path}"']


def test_each_job_sees_devices_of_its_own(monkeypatch):
    for name, value in {
        "CUDA_VISIBLE_DEVICES": "3, 5,7,9,11",
        "SLURM_NTASKS": "4",
        "RANK": "2",
        "MASTER_PORT": "1",
        "OMP_NUM_THREADS": "3",
    }.items():
        monkeypatch.setenv(name, value)
    assert visible() == ["3", "5", "7", "9", "11"]
    processes = Processes(config(), LOADER, n_jobs=None, gpus_per_job=2)
    assert processes.n_jobs == 2
    seen = [processes._environment(slot) for slot in range(2)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in seen] == ["3,5", "7,9"]
    assert not {"SLURM_NTASKS", "RANK", "MASTER_PORT"} & set(seen[0])
    assert seen[0]["OMP_NUM_THREADS"] == "3"  # what a user said


@pytest.mark.parametrize(
    ("given", "jobs", "each", "expected"), [("", None, None, 1), ("", 3, None, 3), ("0,1", None, None, 2), ("0,1", 5, 0, 5)]
)
def test_how_many_jobs_there_are_at_once(monkeypatch, given, jobs, each, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert Processes(config(), LOADER, jobs, each).n_jobs == expected


@pytest.mark.parametrize(("jobs", "each", "said"), [(None, 3, "there are 2 GPUs"), (2, 2, "is more than the 2 GPUs")])
def test_more_than_there_is_is_refused(monkeypatch, jobs, each, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError, match=said):
        Processes(config(), LOADER, jobs, each)


def test_what_there_is_to_run_on_is_said():
    done = subprocess.run([sys.executable, "-m", "sae_lightning.sweeps.devices"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{len(os.sched_getaffinity(0))} CPU cores" in done.stdout
    assert "hydra/launcher=processes" in done.stdout
