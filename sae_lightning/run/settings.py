"""What several runs were told, side by side."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_lightning.errors import InputError
from sae_lightning.run.composer import parsed

ALWAYS = ("model", "seed", "optimizer.lr")
"""Told of every run, typed or not."""
NOT_OF_THE_SAE = (
    "sweep", "hydra", "resume", "paths", "logger", "debug", "callbacks", "evaluate", "name", "nulls", "trainer.log_every_n_steps",
    "trainer.val_check_interval",
)  # fmt: skip
"""Groups and keys that change nothing of it."""


def settings(runs: Sequence[Path | None]) -> list[dict[str, Any]]:
    """Of each run the value of every key that somebody typed for any of them, and of `ALWAYS`; a run has no key that its configuration lacks.

    None, and a run whose record cannot be read, has no settings. Numbers are numbers; what is no plain value is text.
    """
    typed = list(dict.fromkeys([*ALWAYS, *(key for run in runs if run is not None for key in _typed(run))]))
    keys = sorted(typed, key=lambda key: key == "seed")
    return [{} if run is None else _values(run, keys) for run in runs]


def _typed(run: Path) -> list[str]:
    try:
        words = [parsed(str(word)).key_or_group for word in _yaml(run / ".hydra" / "overrides.yaml") or []]
    except InputError:
        return []
    return [word for word in words if word not in NOT_OF_THE_SAE and re.split(r"[./]", word)[0] not in NOT_OF_THE_SAE]


def _values(run: Path, keys: Sequence[str]) -> dict[str, Any]:
    cfg = OmegaConf.create(_yaml(run / ".hydra" / "config.yaml") or {})
    choices = _choices(run)
    found = {key: choices[key] if key in choices else _value(cfg, key) for key in keys}
    return {key: _plain(value) for key, value in found.items() if value is not None}


def _choices(run: Path) -> Mapping[str, Any]:
    record = _yaml(run / ".hydra" / "hydra.yaml") or {}
    return record.get("hydra", {}).get("runtime", {}).get("choices", {})


def _value(cfg: DictConfig, key: str) -> Any:
    try:
        value = OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return None
