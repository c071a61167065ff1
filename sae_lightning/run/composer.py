"""The configuration of a command line, composed by Hydra's own loader before anything runs."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import GroupDefault
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sae_lightning.errors import InputError
from sae_lightning.run.folder import register_resolvers


class Composer:
    """Groups, options and compositions of a configuration folder.

    conf: the folder that holds `<config_name>.yaml`; extra: a folder searched before it (`--config-dir`); words: the command line,
    of which `hydra.searchpath=…` says where else groups are.
    """

    def __init__(self, conf: Path, config_name: str, extra: Path | None = None, words: Sequence[str] = ()):
        setup_globals()
        register_resolvers()
        search_path = create_config_search_path(str(conf))
        if extra is not None:
            search_path.prepend("command-line", f"file://{extra.resolve()}", SearchPathQuery(provider="schema"))
        self.config_name = config_name
        self.loader = ConfigLoaderImpl(search_path)
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.search = [word for word in words if word.startswith("hydra.searchpath=")]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The whole configuration, Hydra's own node included; composed once for equal words. Errors: InputError."""
        words = tuple(overrides)
        if words not in self.composed:
            self.composed[words] = self._compose(words)
        return self.composed[words]

    def _compose(self, words: tuple[str, ...]) -> DictConfig:
        try:
            return self.loader.load_configuration(self.config_name, list(words), RunMode.RUN)
        except YAMLError as error:
            raise InputError(f"a yaml file cannot be read: {one_line(str(error))}") from error
        except Exception as error:  # Hydra's loader has many, some of them its own mistakes, and all come from words and yamls
            cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
            raise InputError(f"this cannot be composed: {one_line(str(cause))}") from error

    @functools.cached_property
    def groups(self) -> dict[str, list[str]]:
        """Every group, `data/transformer` and Hydra's own among them, and its options."""
        return dict(self._groups(""))

    def _groups(self, parent: str) -> Iterator[tuple[str, list[str]]]:
        for name in self.files.get_group_options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            options = self.files.get_group_options(group, ObjectType.CONFIG)
            if options:
                yield group, options
            yield from self._groups(group)

    @functools.cached_property
    def files(self) -> CachingConfigRepository:
        """The yaml files. (`ConfigLoader`'s own listing copies all of them for every question, which takes a second.)"""
        return self.loader._parse_overrides_and_create_caching_repo(self.config_name, self.search)[1]

    def keys(self, group: str, option: str) -> set[str]:
        """The keys that an option's own file writes."""
        result = self._file(f"{group}/{option}")
        config = result.config if result else None
        return {str(key) for key in config if not str(key).startswith("_")} if isinstance(config, DictConfig) else set()

    def named(self, path: str) -> set[str]:
        """The groups that a file's defaults list names, as it writes them: `transformer` in data/text."""
        result = self._file(path)
        return {str(d.group) for d in (result.defaults_list if result else None) or [] if isinstance(d, GroupDefault)}

    def _file(self, path: str) -> ConfigResult | None:
        """None for a file that cannot be read: it was not chosen, so it is not what is wrong now."""
        try:
            return self.files.load_config(path)
        except (YAMLError, OmegaConfBaseException, HydraException):
            return None


@contextlib.contextmanager
def as_if_running(cfg: DictConfig) -> Iterator[None]:
    """Inside, `${hydra:…}` resolves as in a job of this configuration."""
    instance = HydraConfig.instance()
    before = instance.cfg
    runtime = cfg.hydra.runtime
    with read_write(runtime), open_dict(runtime), contextlib.suppress(OmegaConfBaseException):  # `check` says which value is to blame
        runtime.output_dir = str(cfg.hydra.run.dir)
    instance.set_config(cfg)
    try:
        yield
    finally:
        instance.cfg = before


def parsed(word: str) -> Override:
    """One `key=value` of the command line. Errors: InputError."""
    if "=" not in word and not word.startswith("~"):
        raise InputError(f"{word!r} is not of the form key=value")
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        key, _, value = word.partition("=")
        hint = f"""; if the value is text, quote it: '{key}="{value}"'""" if value and value[0] not in "[{\"'" else ""
        raise InputError(f"{word!r} cannot be read ({one_line(str(error))}){hint}") from error


def unsaid(params: Mapping[str, Any], overrides: Iterable[Override]) -> list[str]:
    """The words of `params` whose keys no override names: what is typed stands before what a file says."""
    said = {override.get_key_element() for override in overrides}
    return [f"{key}={value}" for key, value in params.items() if key not in said]


def leaves(node: Any, path: str = "", inner: bool = False) -> Iterator[str]:
    """Every dotted key that has a value; `inner`: those that have keys of their own, too. Not `_target_` and its like."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for key in node:
            below, at = node._get_node(key), f"{path}.{key}" if path else str(key)
            if not str(key).startswith("_") and (inner or not (isinstance(below, DictConfig) and len(below))):
                yield at
            yield from leaves(below, at, inner)


def holds(node: DictConfig, key: str) -> bool:
    """Is there such a key (its value may be null or missing)? List entries count: `trainer.callbacks.0`."""
    try:
        parent, _, last = key.rpartition(".")
        inner = OmegaConf.select(node, parent, throw_on_missing=False) if parent else node
    except (OmegaConfBaseException, TypeError):
        return False
    if isinstance(inner, ListConfig):
        return last.isdigit() and int(last) < len(inner)
    return isinstance(inner, DictConfig) and last in set(inner.keys())  # a missing value is not `in` a DictConfig


def one_line(text: str) -> str:
    """The sentence of a longer message: its lines joined, the pointers of OmegaConf left out."""
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type=", "See https"))]
    return " ".join(kept)
