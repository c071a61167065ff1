"""The configuration of a command line, composed by Hydra's own loader before anything runs."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_lightning.errors import InputError
from sae_lightning.run.folder import register_resolvers


class Composer:
    """Groups, options and compositions of a configuration folder.

    conf: the folder that holds `<config_name>.yaml`; extra: a folder searched before it (`--config-dir`).
    """

    def __init__(self, conf: Path, config_name: str, extra: Path | None = None):
        setup_globals()
        register_resolvers()
        search_path = create_config_search_path(str(conf))
        if extra is not None:
            search_path.prepend("command-line", f"file://{extra.resolve()}", SearchPathQuery(provider="schema"))
        self.config_name = config_name
        self.loader = ConfigLoaderImpl(search_path)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The whole configuration, Hydra's own node included. Errors: InputError, for all that Hydra refuses."""
        try:
            return self.loader.load_configuration(self.config_name, list(overrides), RunMode.RUN)
        except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
            raise InputError(one_line(str(cause))) from error

    @functools.cached_property
    def groups(self) -> dict[str, list[str]]:
        """Every group, `data/transformer` and Hydra's own among them, and its options."""
        return {group: self.loader.get_group_options(group, ObjectType.CONFIG) for group in self._groups("")}

    def _groups(self, parent: str) -> Iterator[str]:
        for name in self.loader.list_groups(parent):
            group = f"{parent}/{name}" if parent else name
            if self.loader.get_group_options(group, ObjectType.CONFIG):
                yield group
            yield from self._groups(group)

    def option(self, group: str, name: str) -> tuple[set[str], set[str]]:
        """The keys that an option's own file writes, and the groups that its defaults list names."""
        result = self.loader.repository.load_config(f"{group}/{name}")
        if result is None or not isinstance(result.config, DictConfig):
            return set(), set()
        named = {str(d.group) for d in result.defaults_list or [] if hasattr(d, "group")}
        return {str(key) for key in result.config}, named


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


def leaves(node: Any, path: str = "") -> Iterator[str]:
    """Every dotted key of a configuration, inner ones too."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for key in node:
            inner = f"{path}.{key}" if path else str(key)
            yield inner
            yield from leaves(node._get_node(key), inner)


def holds(node: DictConfig, key: str) -> bool:
    """Is there such a key (its value may be null or missing)? List entries count: `trainer.callbacks.0`."""
    try:
        parent, _, last = key.rpartition(".")
        inner = OmegaConf.select(node, parent, throw_on_missing=False) if parent else node
        return bool(last.isdigit() and int(last) < len(inner)) if OmegaConf.is_list(inner) else OmegaConf.is_dict(inner) and last in inner.keys()
    except (OmegaConfBaseException, TypeError):
        return False


def one_line(text: str) -> str:
    """The sentence of a longer message: its lines joined, the pointers of OmegaConf left out."""
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type=", "See https"))]
    return " ".join(kept)
