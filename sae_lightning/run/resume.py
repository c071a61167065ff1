"""`resume=<folder>`: what is typed becomes the command of the run that is there, before anything is composed or written.

What a run may not change is what would make it another run: all but the keys below.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_lightning.errors import InputError
from sae_lightning.run.checkpoints import refuse_damaged
from sae_lightning.run.command import Command, validate
from sae_lightning.run.command import read as parse
from sae_lightning.run.composer import Composer, holds, parsed
from sae_lightning.run.folder import rank, recorded_config
from sae_lightning.run.launch import launch_of
from sae_lightning.run.lock import hold, is_held
from sae_lightning.run.suggest import did_you_mean

MAY_CHANGE = (
    "trainer.max_steps",  # longer
    "trainer.max_time",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.log_every_n_steps",
    "trainer.val_check_interval",
    "trainer.profiler",
    "trainer.detect_anomaly",
    "callbacks.last",
    "callbacks.progress_bar",
    "logger",
    "evaluate",
    "nulls",
    "compile",
    "paths",
    "sweep",
    "optimized_metric",
    "resume",
    "name",
)
"""Keys, with all that is below them, that a resumed run may have other values of than the run that was stopped."""
REPLAYED = "hydra.output_subdir=null"
"""Stands among the words of a command that was replayed: those of Lightning's child processes are."""


class Stopped(NamedTuple):
    """The record of a run. `words`: its own, with those of all later resumes; `flags`: where its groups were found."""

    folder: Path
    config: DictConfig
    words: list[str]
    flags: list[str]
    run: dict[str, Any]
    cwd: Path

    @property
    def is_finished(self) -> bool:
        return self.run.get("status") == "finished"


def replay(command: Command, composer: Composer, compose_as: Callable[[list[str]], Composer]) -> Command:
    """The command that goes on with the run that `resume=` names, or the same command where there is no such word.

    Goes to the folder where that run was started, and holds the run's lock until the process ends. `compose_as`: the composer for an
    argv. Errors: InputError, with nothing changed, for a folder that is no run, is in use, is finished or would become another run.
    """
    values = {key: parsed(word).value() for word in command.words for key in ("resume", "name") if word.startswith(f"{key}=")}
    if values.get("resume") is None or REPLAYED in command.words:
        return command
    if command.flags.multirun:
        raise InputError("resume goes on with one run: leave -m out, and resume the jobs of a sweep one by one")
    new = [word for word in command.words if not word.startswith(("resume=", "name="))]
    if values["resume"] == "auto":
        launch = launch_of(os.environ)
        if launch is not None and launch.processes > 1:
            raise InputError(f"resume=auto would be looked up by each process that {launch.by} started: name the folder, resume=outputs/…")
        folder = newest_unfinished(_outputs(composer, new), None if values.get("name") is None else str(values["name"]))
    else:
        folder = Path(str(values["resume"])).expanduser().resolve()
    stopped = read(folder)
    if stopped.cwd.is_dir():
        os.chdir(stopped.cwd)  # what its words call `stores` is there
    flags = [*stopped.flags, *(word for word in command.argv if word not in command.words)]
    composer = compose_as([*flags, *stopped.words])
    words = _merged(composer, stopped.words, new)
    refuse_another(stopped, composer, words, new)
    quoted = str(folder).replace('"', '\\"')
    if rank() == 0:
        hold(folder)
    return parse([*flags, *words, f'resume="{quoted}"', f'hydra.run.dir="{quoted}"', REPLAYED])


def read(folder: Path) -> Stopped:
    """Errors: InputError where `folder` is no run."""
    config = recorded_config(folder)
    hydra = OmegaConf.load(folder / ".hydra" / "hydra.yaml") if (folder / ".hydra" / "hydra.yaml").is_file() else OmegaConf.create({})
    overrides = folder / ".hydra" / "overrides.yaml"
    if not overrides.is_file():
        raise InputError(f"{folder} cannot be resumed: there is no {overrides}, the words that it was started with")
    run = record(folder)
    words = run.get("words") or [*_searched(hydra), *OmegaConf.to_container(OmegaConf.load(overrides))]  # type: ignore[misc]
    sources = OmegaConf.select(hydra, "hydra.runtime.config_sources") or []
    flags = [flag for source in sources if source.provider == "command-line" for flag in ("--config-dir", source.path)]
    return Stopped(folder, config, list(map(str, words)), flags, run, Path(str(OmegaConf.select(hydra, "hydra.runtime.cwd") or ".")))


def record(folder: Path) -> dict[str, Any]:
    """run.json; empty where there is none. Errors: InputError where it cannot be read."""
    path = folder / "run.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}): delete it, and the run goes on without it") from None


def newest_unfinished(outputs: Path, name: str | None) -> Path:
    """The folder below <outputs>/<name> whose run was started last, did not finish, and is not at work. Errors: InputError."""
    names = sorted(path.name for path in outputs.iterdir() if path.is_dir()) if outputs.is_dir() else []
    if name is None:
        raise InputError(f"resume=auto needs name=…, the folder of runs in {outputs}{did_you_mean('', names)}")
    if name not in names:
        raise InputError(f"name={name}: there is no such folder in {outputs}{did_you_mean(name, names)}")
    runs = [path.parent.parent for path in (outputs / name).glob("*/.hydra/config.yaml")]
    unfinished = [folder for folder in runs if record(folder).get("status") != "finished"]
    free = [folder for folder in unfinished if not is_held(folder)]
    if not free:
        why = f"all {len(unfinished)} that are not finished are at work" if unfinished else f"all {len(runs)} are finished"
        raise InputError(f"there is nothing to resume in {outputs / name}: {why}")
    return max(free, key=_started).resolve()


def refuse_another(stopped: Stopped, composer: Composer, words: list[str], new: Sequence[str]) -> None:
    """Errors: InputError for a run that is at work, is finished, or would be another one with these words."""
    folder = stopped.folder
    if rank() == 0 and is_held(folder):
        process = stopped.run.get("process") or {}
        raise InputError(f"{folder} is in use by process {process.get('pid', '?')} on {process.get('host', '?')}: wait until it ends")
    cfg = validate(composer, words)
    for key, recorded, now in differences(stopped.config, cfg):
        raise InputError(
            f"{key} was {_shown(recorded)} and would be {_shown(now)}: that is another run; leave it out, or start a new run without resume="
        )
    before = composer.compose(stopped.words).trainer.max_steps
    steps = cfg.trainer.max_steps
    if steps < before:
        raise InputError(f"trainer.max_steps={steps}: the run has {before} steps; a resumed run may only become longer")
    if stopped.is_finished and steps <= before:
        raise InputError(f"{folder} is finished: it has trained all of its {before} steps; to train longer, add trainer.max_steps=…")
    if rank() == 0:
        refuse_damaged(folder)


def differences(recorded: DictConfig, now: DictConfig, free: Sequence[str] = MAY_CHANGE) -> Iterator[tuple[str, Any, Any]]:
    """(key, recorded value, new value) of what differs and is not `free` to."""
    old, new = dict(_leaves(recorded)), dict(_leaves(now))
    for key in dict.fromkeys([*old, *new]):
        if any(key == one or key.startswith(f"{one}.") for one in ("hydra", *free)):
            continue
        a, b = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if a != b and _resolved(recorded, key, a) != _resolved(now, key, b):
            yield key, a, b


_ABSENT = object()


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its value as it is written; an empty mapping and a list are values."""
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    if isinstance(plain, dict) and (plain or not path):
        for key, value in plain.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, plain


def _resolved(cfg: DictConfig, key: str, written: Any) -> Any:
    """The value behind an interpolation; what is written where it cannot be had now."""
    try:
        value = written if written is _ABSENT else OmegaConf.select(cfg, key)
    except (OmegaConfBaseException, ValueError):
        return written
    return OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value


def _merged(composer: Composer, words: Sequence[str], new: Sequence[str]) -> list[str]:
    """Recorded words, then new ones; what new words say again, or is a value of an option that is no longer chosen, is left out."""
    said = {parsed(word).key_or_group for word in new}
    kept = [word for word in words if parsed(word).key_or_group not in said]
    choices = [word for word in [*kept, *new] if _is_choice(composer, word)]
    if not any(_is_choice(composer, word) for word in new):
        return [*kept, *new]
    validate(composer, choices)
    chosen = composer.compose(choices)
    return [word for word in kept if word in choices or word[0] in "+~" or holds(chosen, parsed(word).key_or_group)] + [*new]


def _is_choice(composer: Composer, word: str) -> bool:
    override = parsed(word)
    return override.key_or_group in composer.groups or override.package is not None or "/" in override.key_or_group


def _outputs(composer: Composer, words: Sequence[str]) -> Path:
    """`paths.outputs` of these words."""
    cfg = composer.compose([word for word in words if word.startswith("paths")])
    return Path(str(cfg.paths.outputs)).absolute()


def _searched(hydra: Any) -> list[str]:
    words = OmegaConf.select(hydra, "hydra.overrides.hydra") or []
    return [str(word) for word in words if str(word).startswith("hydra.searchpath=")]


def _started(folder: Path) -> float:
    """When a run began; one that was killed before it wrote that down, when its folder was made."""
    started = record(folder).get("started")
    return datetime.fromisoformat(started).timestamp() if started else (folder / ".hydra" / "config.yaml").stat().st_mtime


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
