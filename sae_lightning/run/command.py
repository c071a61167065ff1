"""A command line: flags, choices, values, sweeps; each word judged before anything runs."""

import argparse
import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_lightning.errors import InputError
from sae_lightning.run.check import NOT_SHARDED, OF_HARVEST, PARTS_ARE_HARVESTED, SHARDED, check
from sae_lightning.run.composer import Composer, as_if_running, holds, leaves, one_line, parsed, unsaid
from sae_lightning.run.intervals import check_intervals
from sae_lightning.run.suggest import cost, did_you_mean, nearest

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
    if multirun:
        return _validate_sweep(composer, overrides)
    for override in overrides:
        if override.is_sweep_override():
            raise InputError(f"{override.input_line}: several values are a sweep: add -m (or write a list as key=[a,b])")
    return _validate_job(composer, overrides)[0]


def _validate_job(composer: Composer, overrides: Sequence[Override]) -> tuple[DictConfig, DictConfig]:
    """The configuration, and that of its choices alone."""
    choices = [o for o in overrides if _is_choice(composer, o)]
    values = [o for o in overrides if o not in choices]
    for override in choices:
        _check_choice(composer, override)
    try:
        defaults = _compose(composer, choices)
    except InputError:
        for override in choices:
            _check_place(composer, override, choices)
        raise
    for override in values:
        _check_key(composer, defaults, override)
    cfg = _compose(composer, overrides) if values else defaults
    with as_if_running(cfg):
        check(cfg, defaults)
        check_intervals(cfg)
    return cfg, defaults


def _validate_sweep(composer: Composer, overrides: list[Override]) -> DictConfig:
    """Every choice of every group, combined, since a key exists for one option and not for another; every value once with each."""
    first = [_alternatives(composer, o)[0] for o in overrides]
    whole, _ = _validate_job(composer, first)
    params = _params(whole)
    overrides = overrides + [parsed(word) for word in unsaid(params, overrides)]
    if whole.hydra.runtime.choices.get("hydra/sweeper") == "optuna":
        _check_search(composer, overrides)
    elif interval := next((o for o in overrides if isinstance(o.value(), IntervalSweep)), None):
        raise InputError(
            f"{interval.input_line}: a grid has no intervals; write choice(…) or range(…), or search it: add hydra/sweeper=optuna"
        )
    alternatives = [_alternatives(composer, o) for o in overrides]
    is_choice = [_is_choice(composer, o) for o in overrides]
    for job in _combined([a if choice else a[:1] for a, choice in zip(alternatives, is_choice, strict=True)]):
        cfg, defaults = _validate_job(composer, job)
        _refuse_ddp(cfg)
        for i, override in enumerate(overrides):
            for other in () if is_choice[i] else alternatives[i][1:]:
                changed = copy.deepcopy(cfg)
                OmegaConf.update(changed, override.key_or_group, other.value(), force_add=True)
                with as_if_running(changed):
                    check(changed, defaults)
                    check_intervals(changed)
    return whole


def _params(cfg: DictConfig) -> Mapping[str, str]:
    """What a sweeper adds to the words. Errors: InputError for one that reads what this configuration has not."""
    try:
        return (cfg.hydra.get("sweeper") or {}).get("params") or {}
    except OmegaConfBaseException:
        raise InputError(f"hydra/sweeper={cfg.hydra.runtime.choices.get('hydra/sweeper')} is of train.py: leave it out") from None


def _check_search(composer: Composer, overrides: Sequence[Override]) -> None:
    """Errors: InputError where there is nothing to search, or architectures are, each of which has settings of its own."""
    searched = [o for o in overrides if o.is_sweep_override()]
    for override in searched:
        if override.key_or_group == "model":
            raise InputError(
                f"{override.input_line}: a search is of one architecture, whose settings no other one has: search them one by one"
            )
    if not searched:
        known = ", ".join(composer.groups.get("sweep/space", []))
        raise InputError(
            f"there is nothing to search: give some settings several values, 'optimizer.lr=tag(log,interval(1e-4,1e-2))', "
            f"or choose one of sweep/space: {known}"
        )


def _combined(alternatives: list[list[Override]]) -> Iterator[list[Override]]:
    if math.prod(map(len, alternatives)) <= MOST_COMBINATIONS:
        yield from map(list, itertools.product(*alternatives))
        return
    first = [one[0] for one in alternatives]
    yield first
    for i, one in enumerate(alternatives):
        yield from ([*first[:i], other, *first[i + 1 :]] for other in one[1:])


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
            raise InputError(f"{line} {NOT_SHARDED}")
        near = did_you_mean(str(name), options, shown=f"{group}={{}}", limit=20)
        raise InputError(f"{line}: {group} has no option {str(name)!r}{near}")


def _check_place(composer: Composer, override: Override, choices: Sequence[Override]) -> None:
    """A group inside another (`data/transformer`) is there only with some of the other's options."""
    above, _, name = override.key_or_group.rpartition("/")
    chosen = [str(o.value()) for o in choices if o.key_or_group == above]
    owners = [option for option in composer.groups.get(above, []) if name in composer.named(f"{above}/{option}")]
    if above and owners and (not chosen or chosen[-1] not in owners):
        have = f"{above}={chosen[-1]}" if chosen else f"the default of {above}"
        raise InputError(f"{override.input_line}: {have} has no {name}; add one of {', '.join(f'{above}={o}' for o in owners)}")


def _check_key(composer: Composer, defaults: DictConfig, override: Override) -> None:
    """`key=value`: is there such a key? What is added is left to `check`, which knows what it is added to."""
    key, line = override.key_or_group, override.input_line
    is_top = "." not in key
    if override.is_delete() and is_top:
        raise InputError(f"{line}: every key at the top is needed; set it to another value")
    if holds(defaults, key) or override.is_add() or override.is_force_add():
        return
    if key in OF_HARVEST:
        raise InputError(f"{line}: {PARTS_ARE_HARVESTED}")
    is_hydra = key.startswith("hydra.")
    names = [name for name in leaves(defaults, inner=override.is_delete()) if name.startswith("hydra.") == is_hydra]
    near = nearest(key, names + (list(composer.groups) if is_top else []))
    value = "" if override.is_delete() else f"={_value_for(composer, near, override.get_value_string())}"
    elsewhere = {} if is_hydra else _elsewhere(composer, key.rpartition(".")[0])
    other = nearest(key, elsewhere)
    if other is not None and (near is None or cost(key, other) < cost(key, near)):
        raise InputError(f"{line}: there is no key {key!r} now; {other} belongs to {' and '.join(elsewhere[other])}")
    shown = "" if near is None else f"; did you mean {near}{value}?"
    siblings = None if is_top else OmegaConf.select(defaults, key.rpartition(".")[0], throw_on_missing=False)
    known = [str(name) for name in siblings if not str(name).startswith("_")] if isinstance(siblings, DictConfig) else []
    listed = f" (one of: {', '.join(known)})" if 0 < len(known) <= 20 else ""
    raise InputError(f"{line}: there is no key {key!r}{shown}{listed}")


def _value_for(composer: Composer, name: str | None, value: str) -> str:
    """What was typed, or the nearest option where the name is a group's."""
    options = composer.groups.get(name or "", [value])
    return value if value in options else nearest(value, options) or "…"


def _elsewhere(composer: Composer, head: str) -> dict[str, list[str]]:
    """Keys in the files of options, chosen or not: model.target_l0 → [model=lagrangian]. `head`: in this group only, if it is one."""
    groups = [head] if head in composer.groups else [group for group in composer.groups if not group.startswith("hydra")]
    owners: dict[str, list[str]] = {}
    for group in groups:
        for option in composer.groups[group]:
            for name in composer.keys(group, option):
                owners.setdefault(f"{group.replace('/', '.')}.{name}", []).append(f"{group}={option}")
    return owners


def _alternatives(composer: Composer, override: Override) -> list[Override]:
    """The single overrides that a sweep stands for (of a range or an interval, its ends); any other stands for itself."""
    if not override.is_sweep_override():
        return [override]
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        chosen = [value.start, value.end]
    else:
        override.config_loader = composer.loader
        chosen = list(override.sweep_iterator(transformer=Transformer.encode))
    if not chosen:
        raise InputError(f"{override.input_line}: this sweep has no values")
    return [parsed(f"{key}={one}") for one in (chosen[:: max(1, len(chosen) - 1)] if isinstance(value, RangeSweep) else chosen)]


def _refuse_ddp(cfg: DictConfig) -> None:
    """Lightning's children would repeat the command with its -m: each rank would train a sweep of its own."""
    strategy = OmegaConf.select(cfg, "trainer.strategy", throw_on_missing=False)
    name = str(strategy.get("_target_", "") if OmegaConf.is_dict(strategy) else strategy).lower()
    in_process = cfg.hydra.runtime.choices.get("hydra/launcher") in ("basic", "joblib")
    if ("ddp" in name or "shard" in name) and in_process and OmegaConf.select(cfg, "trainer.devices") != 1:
        chosen = "ddp" if "ddp" in name else "shard_latents"
        raise InputError(f"strategy={chosen} cannot train several ranks inside -m: start these runs one by one, or add trainer.devices=1")
