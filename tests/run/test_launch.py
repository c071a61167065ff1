"""Who started the processes of a run, and launches that are refused before anything is loaded."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sae_lightning.errors import InputError
from sae_lightning.run.folder import rank, run_id
from sae_lightning.run.launch import check_launch, launch_of

TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"}
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}
SRUN = JOB | {"SLURM_STEP_ID": "0", "SLURM_NTASKS_PER_NODE": "2"}
"""A task of it. `JOB` are the variables of a batch script, which is none."""
ONE_TASK = SRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1"}


def check(environment, devices=1, num_nodes=1, strategy="auto", folder=Path("nowhere"), resume=None):
    trainer = {"devices": devices, "num_nodes": num_nodes, "strategy": strategy}
    check_launch(OmegaConf.create({"trainer": trainer, "resume": resume}), folder, environment)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, (1, 1, "auto")),
        ({}, (2, 1, "ddp")),
        ({"LOCAL_RANK": "1"}, (2, 1, "ddp")),
        (TORCHRUN, (2, 2, "ddp")),
        (TORCHRUN, ("auto", 2, {"_target_": "sae_lightning.shard_latents.ShardLatents"})),
        (TORCHRUN, ([0, 1], 2, "ddp")),
        (TORCHRUN, ("0,1", 2, "ddp")),
        (SRUN, (2, 2, "ddp")),
        (SRUN | TORCHRUN, (2, 2, "ddp")),
        (ONE_TASK, (1, 1, "auto")),
        (JOB, (1, 1, "auto")),
    ],
)
def test_launches_that_are_right(environment, words):
    check(environment, *words)


@pytest.mark.parametrize(
    ("environment", "words", "says"),
    [
        (
            {},
            (2, 2, "ddp"),
            "torchrun --nnodes 2 --nproc-per-node 2 .*--rdzv-backend=c10d.* srun --nodes=2 --ntasks-per-node=2 python train.py",
        ),
        ({}, (1, 2, "auto"), "type on each machine torchrun"),
        (
            TORCHRUN,
            (1, 1, "auto"),
            "torchrun started 4 processes on 2 machines.* add strategy=ddp trainer.devices=2 trainer.num_nodes=2, or start",
        ),
        (TORCHRUN, (2, 1, "ddp"), "write trainer.devices=2 trainer.num_nodes=2$"),
        (TORCHRUN, ("auto", 1, "ddp"), "write trainer.devices=2 trainer.num_nodes=2$"),
        (TORCHRUN, (4, 1, "ddp"), "write trainer.devices=2 trainer.num_nodes=2$"),
        (SRUN, (1, 1, "auto"), "srun started 4 processes on 2 machines, and each of them would train this run"),
        (SRUN, (1, 2, "ddp"), "write trainer.devices=2 trainer.num_nodes=2$"),
        ({name: SRUN[name] for name in SRUN if name != "SLURM_NTASKS_PER_NODE"}, (2, 2, "ddp"), "add --ntasks-per-node=2"),
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, (2, 2, "ddp"), "add --job-name=train to srun"),
        (ONE_TASK, (2, 1, "ddp"), "in a Slurm job of 1 task, .* ask for --nodes=1 --ntasks-per-node=2, and write srun python train.py"),
        (JOB, (2, 2, "ddp"), "in a Slurm job of 4 tasks, .* ask for --nodes=2 --ntasks-per-node=2, and write srun python train.py"),
    ],
)
def test_launches_that_would_wait_or_train_a_run_twice(environment, words, says):
    with pytest.raises(InputError, match=says):
        check(environment, *words)


def test_torchrun_counts_where_srun_started_it():
    """One task on each machine, which is torchrun: Slurm's rank is the machine's."""
    assert rank(SRUN | TORCHRUN | {"SLURM_PROCID": "1"}) == 3
    assert run_id(SRUN | TORCHRUN) == run_id(TORCHRUN)
    found = launch_of(SRUN | TORCHRUN)
    assert found is not None
    assert (found.by, found.processes, found.machines) == ("torchrun", 4, 2)


def test_a_second_launch_of_one_name_leaves_the_run_of_the_first_alone(tmp_path):
    first = TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}
    check(first, 2, 2, "ddp", tmp_path)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/config.yaml").touch()
    with pytest.raises(InputError, match=f"--rdzv-id: give another one, or go on with resume={tmp_path}"):
        check(first, 2, 2, "ddp", tmp_path)
    check(first, 2, 2, "ddp", tmp_path, resume=str(tmp_path))
    check(TORCHRUN, 2, 2, "ddp", tmp_path)  # another process of the launch that has begun to write
