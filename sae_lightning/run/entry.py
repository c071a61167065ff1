"""What `train.py`, `evaluate.py` and the harvest are wrapped in."""

import functools
import inspect
import logging
import os
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_lightning.errors import GivenUp, InputError
from sae_lightning.run.command import Command, read, validate
from sae_lightning.run.composer import Composer, one_line
from sae_lightning.run.folder import existing, rank, remove_traces
from sae_lightning.run.launch import check_launch
from sae_lightning.run.resume import replay
from sae_lightning.signals import exit_at_once, follow_parent
from sae_lightning.sweeps.trial import telling

log = logging.getLogger(__name__)
Objective = float | tuple[float, ...] | None
Main = Callable[[DictConfig], Objective]


class _Refused(BaseException):
    """An InputError on its way out, past Hydra's own report of failed jobs."""

    def __init__(self, problem: InputError):
        self.problem = problem


def entry(config_name: str, conf: Path | None = None) -> Callable[[Main], Callable[..., Any]]:
    """Decorates `main(cfg)` of a script with a folder `conf` beside it. Of a command whose `conf` is elsewhere: it has no folder of its own.

    The command line is composed and checked first: a mistake is one line on stderr with the nearest valid name, exit code 2, and no
    folder. So is an InputError that `main` raises, however late; any other exception keeps its traceback (exit code 1).
    A signal ends the process. `main` should import what is heavy inside: nothing before it imports torch. `main(cfg)` calls it with
    a configuration at hand.
    """

    def decorate(main: Main) -> Callable[..., Any]:
        @functools.wraps(main)
        def run(cfg: DictConfig | None = None) -> Objective:
            if cfg is not None:
                return main(cfg)
            exit_at_once()
            if rank() == 0:
                follow_parent()
            try:
                _run(main, config_name, conf)
            except InputError as problem:
                _refuse(problem, is_early=True)
            except _Refused as refused:
                _refuse(refused.problem)
            except Exception as error:
                problem = error if type(error) is HydraException else input_error(error)  # a sweeper's plain word
                if problem is None:
                    raise
                _refuse(problem)
            return None

        return run

    return decorate


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError among an exception's causes (Hydra wraps what a constructor raises)."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def _run(main: Main, config_name: str, elsewhere: Path | None) -> None:
    conf = elsewhere or Path(inspect.getfile(main)).resolve().parent / "conf"
    command = read(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"
    keep: list[Path] = []
    if not command.flags.shell_completion and not command.flags.hydra_help:
        composer = _composer(command, conf, config_name)
        if command.flags.help:
            print(help_text(composer))
            return
        command, composer = _replayed(command, composer, conf, config_name)
        cfg = validate(composer, command.words, command.flags.multirun)
        folder = _folder(cfg, command.flags.multirun)
        if not command.flags.multirun:
            check_launch(cfg, folder)
        place = "paths.outputs" if elsewhere is None else "paths.multirun" if command.flags.multirun else "paths.stores"
        keep = [existing(folder, place)]
    sys.argv[1:] = command.argv
    sweeps: set[Path] = set()
    try:
        hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(_task(main, keep, sweeps, elsewhere is None))()
    finally:
        for folder in sweeps:
            remove_traces(folder, keep)


def _replayed(command: Command, composer: Composer, conf: Path, config_name: str) -> tuple[Command, Composer]:
    """The command of a run that `resume=` names; the same one where there is no such word, or where `resume` is no run but a switch."""
    if not any(word.startswith("resume=") for word in command.words) or composer.compose([]).get("resume", False) is not None:
        return command, composer
    sys.argv[0] = os.path.abspath(sys.argv[0])  # the folder is about to change
    command = replay(command, composer, lambda argv: _composer(read(argv), conf, config_name))
    return command, _composer(command, conf, config_name)


def _composer(command: Command, conf: Path, config_name: str) -> Composer:
    """Errors: InputError where --config-path, --config-dir or --config-name name what is not there."""
    flags = command.flags
    if flags.config_path is not None:
        conf = Path(flags.config_path).resolve()
    extra = None if flags.config_dir is None else Path(flags.config_dir)
    folders = [folder for folder in (conf, extra) if folder is not None]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder} to read a configuration from")
    name = flags.config_name or config_name
    if not any((folder / f"{name.removesuffix('.yaml')}.yaml").is_file() for folder in folders):
        raise InputError(f"there is no {name}.yaml in {conf}")
    return Composer(conf, name, extra, command.words)


def _folder(cfg: DictConfig, multirun: bool) -> Path:
    """Where a run, or a whole sweep, will write. Errors: InputError where the configuration does not say."""
    key = "hydra.sweep.dir" if multirun or cfg.hydra.mode == RunMode.MULTIRUN else "hydra.run.dir"
    try:
        return Path(OmegaConf.select(cfg, key))
    except OmegaConfBaseException as error:
        raise InputError(f"{key} cannot be resolved: {str(error).splitlines()[0]}") from error


def help_text(composer: Composer) -> str:
    """Hydra's template (conf/hydra/help) filled in. Hydra's own way to it takes two seconds, for the same text."""
    groups = {group: ", ".join(sorted(options)) for group, options in sorted(composer.groups.items())}
    shown = {
        "APP_CONFIG_GROUPS": "".join(f"  {group}: {options}\n" for group, options in groups.items() if not group.startswith("hydra")),
        "HYDRA_CONFIG_GROUPS": "".join(f"  {group}: {options}\n" for group, options in groups.items() if group.startswith("hydra")),
    }
    return string.Template(composer.compose([]).hydra.help.template).safe_substitute(shown).rstrip()


def _task(main: Main, keep: list[Path], sweeps: set[Path], has_folder: bool) -> Main:
    """`main`, with what it refuses taken out of Hydra's hands and its empty folder removed.

    sweeps: gets the folders of the sweeps that have such jobs; has_folder: whether to say which one it writes into.
    """

    @functools.wraps(main)
    def task(cfg: DictConfig) -> Objective:
        job = HydraConfig.get()
        if rank() == 0 and has_folder:
            log.info("folder: %s", job.runtime.output_dir)
        try:
            with telling(Path(job.runtime.output_dir)) as told:
                return told(main(cfg))
        except GivenUp as end:
            log.info("%s", end)
            return None
        except Exception as error:
            problem = input_error(error)
            if problem is None:
                raise
            is_sweep = job.mode == RunMode.MULTIRUN
            if rank() == 0:
                remove_traces(Path(job.runtime.output_dir), [*keep, Path(job.sweep.dir)] if is_sweep else keep)
            if is_sweep:  # the other jobs go on; the sweeper hears of this one
                sweeps.add(Path(job.sweep.dir))
                raise problem from None
            raise _Refused(problem) from None

    return task


def _refuse(problem: Exception, is_early: bool = False) -> NoReturn:
    """What the configuration alone shows is equal on every rank: rank 0 says it."""
    if not is_early or rank() == 0:
        print(f"error: {one_line(str(problem))}", file=sys.stderr, flush=True)
    sys.exit(2)
