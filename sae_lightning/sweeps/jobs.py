"""The jobs of a sweep: where each of them is, how far it came, and the words that begin it or go on with it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from sae_lightning.errors import InputError, in_a_line
from sae_lightning.files import write_json
from sae_lightning.run.lock import is_held
from sae_lightning.run.resume import MAY_CHANGE as OF_A_RUN
from sae_lightning.run.resume import differences

ENDED = ("finished", "given up")
"""What run.json says of a job that is not begun again."""
KEPT = "sweep.json"
MAY_CHANGE = [*(set(OF_A_RUN) - {"trainer.max_steps", "trainer.max_time", "trainer.val_check_interval", "optimized_metric"})]
"""Keys that a sweep that was stopped may have other values of when it goes on: of its jobs they change nothing."""


class Job(NamedTuple):
    """`words`: what the command of this job says of the run."""

    number: int
    folder: Path
    words: list[str]


class Jobs:
    """Of the sweep whose composed configuration is `config` (without the words that have several values)."""

    def __init__(self, config: DictConfig, loader: ConfigLoader):
        self.config, self.loader = config, loader
        self.folder = Path(str(config.hydra.sweep.dir)).absolute()

    def job(self, number: int, words: Sequence[str]) -> Job:
        """Errors: InputError where the words cannot be composed."""
        cfg = composed(self.config, self.loader, number, words)
        return Job(number, self.folder / str(cfg.hydra.sweep.subdir), list(words))

    def launched(self, job: Job, *more: str) -> list[str]:
        """What a launcher is given. A job that was begun before goes on in its folder, whose record stays as it is."""
        at = [f"hydra.sweep.dir={quoted(self.folder)}", f"hydra.sweep.subdir={quoted(job.folder.name)}"]
        if (job.folder / ".hydra" / "config.yaml").is_file():
            at += [f"resume={quoted(job.folder)}", "hydra.output_subdir=null"]
        return [*job.words, *at, *more]

    def begin(self, about: dict[str, Any]) -> None:
        """Makes the folder, and keeps in it what the sweep is. Errors: InputError for a folder of another sweep: what differs."""
        path = self.folder / KEPT
        if path.is_file():
            refuse_another(json.loads(path.read_text(encoding="utf-8")), about, str(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, about)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")


def composed(config: DictConfig, loader: ConfigLoader, number: int, words: Sequence[str]) -> DictConfig:
    """The configuration of a job of the sweep that `config` is of. Errors: those of Hydra's loader."""
    cfg = loader.load_sweep_config(config, list(words))
    with open_dict(cfg):
        cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
    return cfg


def launched(launcher: Launcher, words: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
    """How each of these jobs ended. Errors: HydraException where the launcher itself fails, as submitit's does when one of its jobs is killed."""
    try:
        return launcher.launch(words, initial_job_idx=first)
    except (HydraException, InputError):
        raise
    except Exception as error:
        raise HydraException(
            f"{type(launcher).__name__} has lost a job ({in_a_line(error)}); type the same command again to go on"
        ) from error


def objectives(config: DictConfig) -> dict[str, str]:
    """By metric: minimize or maximize. Errors: InputError for more of one than of the other."""
    metrics, directions = config.optimized_metric, config.sweep.direction
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    directions = [directions] if isinstance(directions, str) else list(directions)
    if len(metrics) != len(directions):
        raise InputError(f"optimized_metric has {len(metrics)} names and sweep.direction {len(directions)}: give one direction for each")
    return dict(zip(metrics, directions, strict=True))


def record(job: Job) -> dict[str, Any]:
    """run.json; {"status": "at work"} while a process trains there; empty for a job that was not begun, or whose record was damaged."""
    if is_held(job.folder):
        return {"status": "at work"}
    try:
        return json.loads((job.folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def refuse_another(kept: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Errors: InputError where two sweeps are not the same one: the first thing that differs."""
    hint = "give this one another name (sweep.name=…)"
    for key in now:
        if key != "config" and kept.get(key) != now[key]:
            raise InputError(f"{where} is of another sweep: its {key} was {_shown(kept.get(key))}, and is {_shown(now[key])} now; {hint}")
    for key, before, after in differences(DictConfig(kept["config"]), DictConfig(now["config"]), free=MAY_CHANGE):
        raise InputError(f"{where} is of another sweep: {key} was {before} there, and is {after} now; {hint}")


def plain(config: DictConfig) -> dict[str, Any]:
    """What a configuration says of the runs, as it is written, without what is Hydra's."""
    node = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return json.loads(json.dumps(OmegaConf.to_container(node, resolve=False), default=str))


def say(text: str, *values: object) -> None:
    """A line on the screen: the log is that of the job at work."""
    print(text % values, flush=True)


def quoted(value: object) -> str:
    """As one value of a word."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _shown(value: Any) -> str:
    return ", ".join(f"{key}: {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)
