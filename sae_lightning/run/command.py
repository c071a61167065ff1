"""A command line: flags, choices, values, sweeps; each word judged before anything runs."""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from omegaconf import DictConfig, OmegaConf

from sae_lightning.errors import InputError
from sae_lightning.run.check import SHARDED, check
from sae_lightning.run.composer import Composer, holds, leaves, one_line, parsed
from sae_lightning.run.suggest import did_you_mean, nearest

MOST_COMBINATIONS = 64
"""Of the choices of a sweep, so many are composed in full; a larger sweep has each choice composed once."""


class Command(NamedTuple):
    """`argv`: the same words, flags first, as argparse (Hydra's, and that of Lightning's child processes) wants them."""

    argv: list[str]
    flags: argparse.Namespace
    words: list[str]


def read(argv: Sequence[str]) -> Command:
    """Errors: InputError for an unknown flag."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        names = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
        raise InputError(f"unknown flag {unknown}{did_you_mean(unknown, names, limit=0)}" if unknown.startswith("-") else one_line(message))

    parser.error = refuse
    flags = parser.parse_intermixed_args(list(argv))
    words, left = list(flags.overrides), list(flags.overrides)
    front: list[str] = []
    for word in argv:
        if word in left:
            left.remove(word)
        else:
            front.append(word)
    if flags.experimental_rerun is not None:
        raise InputError("--experimental-rerun would unpickle a file: start the run again with its own words instead")
    return Command([*front, *words], flags, words)


def validate(composer: Composer, words: Sequence[str], multirun: bool = False) -> DictConfig:
    """The configuration of these words (of a sweep: of its first job). Errors: InputError, naming the word and the nearest valid one."""
    overrides = [parsed(word) for word in words]
    multirun = multirun or any(o.key_or_group == "hydra.mode" and str(o.value()).upper() == "MULTIRUN" for o in overrides)
    if not multirun:
        for override in overrides:
            if override.is_sweep_override():
                raise InputError(f"{override.input_line}: several values are a sweep: add -m (or write a list as key=[a,b])")
        return _validate_job(composer, overrides)
    first = [[parsed(word) for word in _choices(o)[:1]] if o.is_sweep_override() else [o] for o in overrides]
    sweeper = _validate_job(composer, [o for group in first for o in group]).hydra.get("sweeper") or {}
    overrides += [parsed(f"{key}={value}") for key, value in (sweeper.get("params") or {}).items()]
    configs = [_validate_job(composer, job) for job in _jobs(composer, overrides)]
    for cfg in configs:
        _refuse_ddp(cfg)
    return configs[0]


def _validate_job(composer: Composer, overrides: Sequence[Override]) -> DictConfig:
    choices = [o for o in overrides if _is_choice(composer, o)]
    values = [o for o in overrides if o not in choices]
    for override in choices:
        _check_choice(composer, override)
    defaults = _compose(composer, choices)
    for override in values:
        _check_key(composer, defaults, override)
    cfg = _compose(composer, overrides) if values else defaults
    for override in values:
        if override.is_delete() and "." not in override.key_or_group:
            raise InputError(f"~{override.key_or_group}: every key at the top is needed; set it to another value")
    check(cfg, defaults)
    return cfg


def _compose(composer: Composer, overrides: Sequence[Override]) -> DictConfig:
    return composer.compose([str(o.input_line) for o in overrides])


def _is_choice(composer: Composer, override: Override) -> bool:
    return override.key_or_group in composer.groups or override.package is not None or "/" in override.key_or_group


def _check_choice(composer: Composer, override: Override) -> None:
    """`group=option`: are there such a group and such an option, and does what is chosen above it have this group?"""
    group, line = override.key_or_group, override.input_line
    if group not in composer.groups:
        raise InputError(f"{line}: there is no group {group!r}{did_you_mean(group, composer.groups, shown='{}=…')}")
    options = composer.groups[group]
    value = override.value()
    if override.is_delete() and value is None:
        return
    names = value if isinstance(value, list) else [value]
    for name in names:
        if name is None or isinstance(name, dict | list):
            empty = f"; for none at all, {group}=none" if "none" in options else ""
            raise InputError(f"{line}: {group} is a group: choose {did_you_mean('', options).removeprefix('; ')}{empty}")
        if str(name) in options:
            continue
        if str(name).startswith(SHARDED):
            raise InputError(f"{line} is not supported: an SAE fits on one device whole; use strategy=ddp")
        near = did_you_mean(str(name), options, shown=f"{group}={{}}", limit=20)
        raise InputError(f"{line}: {group} has no option {str(name)!r}{near}")


def _check_key(composer: Composer, defaults: DictConfig, override: Override) -> None:
    """`key=value`: is there such a key? One that is added needs a place to be added to."""
    key, line = override.key_or_group, override.input_line
    if holds(defaults, key) or key.startswith(("hydra.job.env_set.", "hydra.callbacks.")):
        return
    if override.is_add() or override.is_force_add():
        parent = key.rpartition(".")[0]
        if parent == "" or holds(defaults, parent):
            return  # what it is added to is asked by `check`
    head, _, rest = key.partition(".")
    owners = [option for option in composer.groups.get(head, []) if rest and rest.partition(".")[0] in composer.option(head, option)[0]]
    chosen = defaults.hydra.runtime.choices.get(head)
    if owners and chosen not in owners:
        raise InputError(f"{line}: {head}={chosen} has no {rest!r}; it belongs to {' and '.join(f'{head}={o}' for o in owners)}")
    names = [name for name in leaves(defaults) if name.startswith("hydra.") == key.startswith("hydra.")]
    names += [] if rest else list(composer.groups)
    near = nearest(key, names)
    shown = "" if near is None else f"; did you mean {near}=…?"
    siblings = OmegaConf.select(defaults, key.rpartition(".")[0], throw_on_missing=False) if rest else None
    known = f" ({head} has: {', '.join(map(str, siblings))})" if OmegaConf.is_dict(siblings) and len(siblings) <= 20 else ""
    raise InputError(f"{line}: there is no key {key!r}{shown}{known}")


def _choices(override: Override) -> list[str]:
    """The single words that a sweep stands for; of a range or an interval, its ends."""
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    chosen = list(override.sweep_iterator(transformer=Transformer.encode))
    if isinstance(value, RangeSweep):
        chosen = [chosen[0], chosen[-1]] if chosen else []
    if not chosen:
        raise InputError(f"{override.input_line}: this sweep has no values")
    return [f"{key}={one}" for one in chosen]


def _jobs(composer: Composer, overrides: Sequence[Override]) -> Iterator[list[Override]]:
    """Every choice at least once. Choices of groups are combined, since a key exists for one option and not for another."""
    swept: list[list[Override]] = []
    for override in overrides:
        override.config_loader = composer.loader
        swept.append([parsed(word) for word in _choices(override)] if override.is_sweep_override() else [override])
    combinations = 1
    for alternatives in swept:
        combinations *= len(alternatives)
    if combinations <= MOST_COMBINATIONS:
        yield from map(list, itertools.product(*swept))
        return
    first: list[Any] = [alternatives[0] for alternatives in swept]
    yield first
    for i, alternatives in enumerate(swept):
        for alternative in alternatives[1:]:
            yield [*first[:i], alternative, *first[i + 1 :]]


def _refuse_ddp(cfg: DictConfig) -> None:
    """Lightning's children would repeat the command with its -m: each rank would train a sweep of its own."""
    strategy = OmegaConf.select(cfg, "trainer.strategy", throw_on_missing=False)
    name = str(strategy.get("_target_", "") if OmegaConf.is_dict(strategy) else strategy).lower()
    in_process = cfg.hydra.runtime.choices.get("hydra/launcher") in ("basic", "joblib")
    if "ddp" in name and in_process and OmegaConf.select(cfg, "trainer.devices") != 1:
        raise InputError("strategy=ddp cannot train several ranks inside -m: start these runs one by one, or add trainer.devices=1")
