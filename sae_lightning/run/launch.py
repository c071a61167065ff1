"""Which command started the processes of a run, and whether they are as many as it was told to have."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sae_lightning.errors import InputError

SHELLS = ("bash", "interactive")
"""Names of Slurm jobs that Lightning takes for a shell in which somebody types: it is then not one of the job's tasks."""


class Launch(NamedTuple):
    """Processes that torchrun or srun started together, this one among them.

    `common`: what all of them know, and no other launch does; empty where there is nothing.
    """

    by: str
    processes: int
    machines: int
    rank: int
    common: tuple[Any, ...]


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """torchrun's before srun's, which may have started it; None for a process that is alone, or was started by Lightning."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return _by_torchrun(environment)
    processes = int(environment.get("SLURM_NTASKS", 1))
    if processes == 1 or "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment:
        return None
    machines = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", 1)))
    common = "slurm", environment["SLURM_JOB_ID"], environment["SLURM_STEP_ID"], environment.get("SLURM_RESTART_COUNT")
    return Launch("srun", processes, machines, int(environment["SLURM_PROCID"]), common)


def _by_torchrun(environment: Mapping[str, str]) -> Launch:
    name, processes = environment["TORCHELASTIC_RUN_ID"], int(environment.get("WORLD_SIZE", 1))
    machines = max(1, processes // int(environment.get("LOCAL_WORLD_SIZE", processes)))
    unnamed = ("torchrun", os.getppid(), started(os.getppid())) if machines == 1 else ()
    common = unnamed if name == "none" else ("torchrun", name)
    return Launch("torchrun", processes, machines, int(environment.get("RANK", 0)), common)


def started(pid: int) -> str:
    """When a process started, in ticks since boot; empty where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def check_launch(cfg: DictConfig, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Whether the processes of a training are those that `trainer` speaks of: Lightning would wait for the others, or train a run in each.

    `folder`: of the run. Errors: InputError, with the words that are right; and where a launch of the same name has left a run there.
    """
    machines = OmegaConf.select(cfg, "trainer.num_nodes")
    if machines is None:
        return
    devices = _devices(cfg.trainer.devices)
    is_divided = machines > 1 or devices not in (None, 1) or cfg.trainer.strategy != "auto"
    launch = launch_of(environment)
    if launch is None:
        _check_alone(machines, devices, is_divided, environment)
        return
    each = launch.processes // launch.machines
    right = f"trainer.devices={each} trainer.num_nodes={launch.machines}"
    said = f"{launch.by} started {launch.processes} processes on {launch.machines} machine{'s' if launch.machines > 1 else ''}"
    if not is_divided and launch.processes > 1:
        raise InputError(f"{said}, and each of them would train this run: add strategy=ddp {right}, or start one")
    if is_divided and (machines != launch.machines or devices not in (None, each)):
        raise InputError(f"{said}, and this run is of trainer.devices={cfg.trainer.devices} on trainer.num_nodes={machines}: write {right}")
    if launch.by == "srun":
        _check_srun(each, environment)
    elif launch.rank == 0 and cfg.get("resume") is None and (folder / ".hydra" / "config.yaml").is_file():
        raise InputError(
            f"{folder} is the run that torchrun started with the same --rdzv-id: give another one, or go on with resume={folder}"
        )


def _check_alone(machines: int, devices: int | None, is_divided: bool, environment: Mapping[str, str]) -> None:
    """Of a process that is not one of several that were started together."""
    each = devices or "<devices>"
    tasks = f"--nodes={machines} --ntasks-per-node={each}"
    if is_divided and "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in SHELLS:
        n = int(environment["SLURM_NTASKS"])
        if n > 1 or (devices or 1) * machines > 1:
            raise InputError(
                f"this is one process in a Slurm job of {n} task{'s' if n > 1 else ''}, and this run is of trainer.devices={each} on "
                f"trainer.num_nodes={machines}: ask for {tasks}, and write srun python train.py …"
            )
    if machines > 1:
        raise InputError(
            f"trainer.num_nodes={machines} is not started by train.py alone: type on each machine torchrun --nnodes {machines} --nproc-per-node "
            f"{each} --rdzv-backend=c10d --rdzv-id=<a name> --rdzv-endpoint=<one machine>:29500 train.py …, or, with Slurm, "
            f"srun {tasks} python train.py …"
        )


def _check_srun(each: int, environment: Mapping[str, str]) -> None:
    """What Lightning wants of a task's environment."""
    if "SLURM_NTASKS_PER_NODE" not in environment:
        raise InputError(f"srun does not say how many tasks a machine has: add --ntasks-per-node={each}")
    if environment.get("SLURM_JOB_NAME") in SHELLS:
        raise InputError(f"a Slurm job named {environment['SLURM_JOB_NAME']} is taken for a shell: add --job-name=train to srun")


def _devices(typed: Any) -> int | None:
    """How many a machine has; None where Lightning counts them."""
    if OmegaConf.is_list(typed):
        return len(typed)
    words = [word for word in str(typed).split(",") if word.strip()]
    if len(words) > 1 or str(typed).endswith(","):
        return len(words)
    return int(typed) if str(typed).isdigit() else None
