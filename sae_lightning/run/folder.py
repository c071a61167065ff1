"""Names and folders of runs, as resolvers that the yamls use, and what a refused run leaves behind: nothing.

${run_name:}              lagrangian-L0_16-F1024-s0
${run_id:}                2026-11-21_10-02-33_k3x9: another one for every run, the same one for all ranks of a run
${sweep_name:<name>}      lagrangian-optuna-3fa9c1: the same one for commands that are the same sweep, and for all jobs of it
${evaluated:<run>,<study>,<sae>,<outputs>}  what of the first three was given; of several the first
${log_file:<folder>}      <folder>/training.log; a rank above 0 has a file of its own
"""

import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sae_lightning.errors import InputError
from sae_lightning.run.check import check
from sae_lightning.run.launch import launch_of

ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
SPARSITY = {"target_l0": "L0_", "k": "k", "sparsity": "l1_"}
"""Parameters of a model that belong in a run's name, and what stands before their value there."""

EVALUATED = "evaluated"
"""The folder in a run of SAEs that are not its own, and in `paths.outputs` of those that are of no run."""

NOT_OF_A_SWEEP = (
    "callbacks.last",
    "callbacks.progress_bar",
    "compile",
    "hydra.",
    "hydra/job_logging",
    "hydra/launcher",
    "logger",
    "paths",
    "strategy",
    "sweep.dry_run",
    "sweep.limit",
    "sweep.max_failure_rate",
    "sweep.max_restarts",
    "sweep.n_jobs",
    "sweep.n_trials",
    "sweep.storage",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.profiler",
    "trainer.strategy",
)
"""How words begin that may differ between two commands for the same sweep."""


def register_resolvers() -> None:
    """Makes the names above known to OmegaConf. Id and sweep are cached: one configuration has one."""
    OmegaConf.register_new_resolver("run_name", lambda *, _root_: run_name(_root_), replace=True)
    OmegaConf.register_new_resolver("run_id", lambda: run_id(os.environ), use_cache=True, replace=True)
    OmegaConf.register_new_resolver("sweep_name", lambda name: sweep_name(name, sys.argv[1:]), use_cache=True, replace=True)
    OmegaConf.register_new_resolver("evaluated", evaluated, replace=True)
    OmegaConf.register_new_resolver("log_file", lambda folder: log_file(folder, rank()), replace=True)
    OmegaConf.register_new_resolver("beside_database", beside_database, replace=True)


def beside_database(tracking_uri: str | None) -> str | None:
    """Where MLflow puts files of runs in a SQLite file: `mlflow` in its folder, and not in that of the process. A server knows by itself."""
    scheme, _, path = (tracking_uri or "").partition(":///")
    return str(Path(path).absolute().parent / "mlflow") if scheme == "sqlite" else None


def run_name(cfg: DictConfig) -> str:
    """<model>[-<dictionary>][-<sparsity>]-<F1024 or x8>[-live]-s<seed>, with what the configuration knows.

    `name` stands for all of it. F is the number of latents where it is known before the data is: from `dictionary.d_sae`, or from `data.d`.
    Null models go without it: most of them have a size of their own.
    """
    name = _select(cfg, "name")
    if name is not None:
        return str(name).replace("/", "_")
    choices = _choices(cfg)
    parts = [str(choices.get("model", "sae"))]
    if choices.get("dictionary", "autoencoder") != "autoencoder":
        parts.append(str(choices["dictionary"]))
    known = {mark: _select(cfg, f"model.{key}") for key, mark in SPARSITY.items()}
    parts += [f"{mark}{_short(value)}" for mark, value in known.items() if value is not None]
    if not str(_select(cfg, "model._target_")).startswith("sae_lightning.models.null."):
        parts += _size(cfg)
    if _select(cfg, "data.mode") == "live":
        parts.append("live")
    if _select(cfg, "seed") is not None:
        parts.append(f"s{cfg.seed}")
    return "-".join(part.replace("/", "_").replace("=", "_") for part in parts)


def _size(cfg: DictConfig) -> list[str]:
    """Of the dictionary, where anything is known of it."""
    d_sae, factor = _select(cfg, "dictionary.d_sae"), _select(cfg, "dictionary.expansion_factor")
    d = None if _select(cfg, "data.views") == "stack" else _select(cfg, "data.d")
    if d_sae is None and isinstance(d, int) and isinstance(factor, int | float):
        d_sae = round(factor * d)
    if d_sae is not None:
        return [f"F{d_sae}"]
    return [] if factor is None else [f"x{_short(factor)}"]


def run_id(environment: Mapping[str, str]) -> str:
    """<date>_<time>_<4 random characters>; under torchrun and srun, where every rank composes by itself, job_<8 hex digits>.

    A run that a W&B agent started has the id that it has there.

    Errors: InputError where ranks on several machines have nothing in common to make an id from.
    """
    agents = of_agent(environment)
    if agents is not None:
        return agents
    launch = launch_of(environment)
    if launch is not None and not launch.common:
        raise InputError("torchrun on several machines gives this run no name: add --rdzv-id=<any name, a new one for each run>")
    if launch is not None:
        return "job_" + hashlib.blake2b(repr(launch.common).encode(), digest_size=4).hexdigest()
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{''.join(secrets.choice(ALPHABET) for _ in range(4))}"


def sweep_name(name: str | None, argv: Sequence[str]) -> str:
    """[<model>-]<sweeper>-<6 hex digits of the command's words>, or the name that was given.

    Words that change nothing of what a job computes, or only how many there are, do not count.
    """
    if name is not None:
        return str(name).replace("/", "_")
    words = [word for word in argv if "=" in word and not word.lstrip("+~").startswith(NOT_OF_A_SWEEP)]
    digest = hashlib.blake2b("\n".join(words).encode(), digest_size=3).hexdigest()
    said = dict(word.split("=", 1) for word in words)
    models = [said["model"]] if "," not in said.get("model", ",") else []
    return "-".join([*models, said.get("hydra/sweeper", "sweep"), digest])


def of_agent(environment: Mapping[str, str]) -> str | None:
    """The id of a run that a W&B agent started."""
    return environment.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in environment else None


def evaluated(run: str | Sequence[str] | None, study: str | None, sae: str | Sequence[str] | None, outputs: str) -> str:
    """The folder of what is evaluated, the first of several: an SAE's is its run, or one of all that are of no run.

    Errors: ValueError unless a run or an SAE is given, or a study alone.
    """
    if (run is None and sae is None) == (study is None):
        raise ValueError("run must be given, or study, or sae: the folder of a run, or that of a sweep, or an exported SAE")
    if run is not None and len(run) == 0:
        raise ValueError("run is empty: give the folder of a run, or a list of them")
    if run is None and sae is not None:
        own = [run_of(Path(path)) for path in ([sae] if isinstance(sae, str) else sae)[:1]]
        return str(own[0] if own and own[0] else Path(outputs) / EVALUATED)
    first = run if run is None or isinstance(run, str) else run[0]
    return first or study or ""


def run_of(sae: Path) -> Path | None:
    """The run that an exported SAE lies in; None where it lies elsewhere."""
    return next((folder for folder in (sae, sae.parent) if (folder / ".hydra" / "config.yaml").is_file()), None)


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank, from what a launcher left in the environment; 0 where there was none."""
    launch = launch_of(environment)
    return launch.rank if launch is not None else int(environment.get("RANK", environment.get("LOCAL_RANK", 0)))


def log_file(folder: str, rank: int) -> str:
    return str(Path(folder) / ("training.log" if rank == 0 else f"training.rank{rank}.log"))


def recorded_config(folder: str | Path) -> DictConfig:
    """What a run was made from. Errors: InputError where `folder` is no run, or its record names a `_target_` that is not allowed."""
    path = Path(folder) / ".hydra" / "config.yaml"
    if not path.is_file():
        raise InputError(f"{folder} is not the folder of a run: there is no {path}")
    setup_globals()
    register_resolvers()
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError) as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(cfg, DictConfig):
        raise InputError(f"{path} holds no configuration")
    check(cfg)
    return cfg


def existing(path: Path, key: str = "paths.outputs") -> Path:
    """The deepest folder above `path`, or `path` itself, that is there already. Errors: InputError if one cannot write into it.

    key: what says where `path` is.
    """
    path = path.absolute()
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise InputError(f"{path} is a file where a folder is needed: choose another place with {key}=…")
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written to: choose another place with {key}=…")
    return path


def remove_traces(folder: Path, keep: Iterable[Path]) -> None:
    """Removes the folder of a run or a sweep, and the empty ones above it up to one of `keep`.

    A folder stays that holds anything but .hydra, multirun.yaml and logs.
    """
    folder, kept = folder.absolute(), {path.absolute() for path in keep}
    if folder in kept or not folder.is_dir() or any(_is_result(path) for path in folder.iterdir()):
        return
    shutil.rmtree(folder)
    for parent in folder.parents:
        if parent in kept or any(parent.iterdir()):
            return
        parent.rmdir()


def _is_result(path: Path) -> bool:
    return not (path.name in {".hydra", "multirun.yaml"} or (path.suffix == ".log" and path.is_file()))


def _choices(cfg: DictConfig) -> Mapping[str, Any]:
    """Which option each group has: in the whole configuration, or, while a job runs, from Hydra."""
    if "hydra" in cfg:
        return cfg.hydra.runtime.choices
    return HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}


def _select(cfg: DictConfig, key: str) -> Any:
    """None where the key is absent, missing, or points at something that is."""
    try:
        return OmegaConf.select(cfg, key, throw_on_missing=False)
    except OmegaConfBaseException:
        return None


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
