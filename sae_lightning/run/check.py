"""Every value of a configuration against the signature of what it is for, before anything heavy is imported."""

import ast
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from sae_lightning.errors import InputError
from sae_lightning.run.kinds import fits, kind, like, words
from sae_lightning.run.signature import Signature, signature, source_file
from sae_lightning.run.suggest import did_you_mean

OURS = "sae_lightning."
ALLOWED = (
    "lightning",
    "lightning.pytorch",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "torchmetrics",
)
"""Other people's modules whose classes a `_target_` may name; of these the class itself, nothing that it merely imports."""
FOR_HYDRA = ("hydra._internal.core_plugins.", "hydra_plugins.", "hydra.experimental.callbacks.", "optuna.samplers.", "optuna.pruners.")
"""Allowed below the key `hydra`, where Hydra itself accepts only plugins."""
OF_HARVEST = {"data.part": "int | None", "data.parts": "int | None"}
"""Keys beside an object's parameters that the harvest takes for itself."""
OF_BUILD = {"model.init_from": "str | None", "model.loss": "Literal['reconstruction', 'kl']", "dictionary.views": "str"} | OF_HARVEST
"""The same of `build`, and what their values are: every architecture, every dictionary has them."""
PARTS_ARE_HARVESTED = (
    "python -m sae_lightning.data.harvest makes stores in parts, python -m sae_lightning.data.store merge joins them, and what trains "
    "finds the whole: leave out data.part and data.parts"
)
SPECIAL = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
SHARDED = ("fsdp", "deepspeed", "model_parallel", "ModelParallel", "FSDP", "DeepSpeed")
NOT_SHARDED = (
    "is not supported: for a dictionary too large for one device use strategy=shard_latents, for more rows per second strategy=ddp"
)


def check(cfg: DictConfig, defaults: DictConfig | None = None) -> None:
    """Refuses a `_target_` that is not allowed, an unknown parameter, a value of the wrong kind, a missing one.

    cfg: a composed configuration, or one read from a file; defaults: the same choices without single values changed, which
    says what kind a value has where no signature does. Errors: InputError.
    """
    _check_strategy(cfg)
    _check_node(cfg, defaults, "")


def _check_node(node: DictConfig, defaults: DictConfig | None, path: str) -> None:
    found = _target(node, path) if "_target_" in node else None
    for key in node:
        inner = f"{path}.{key}" if path else str(key)
        if inner == "hydra":
            _check_hydra(node[key])
        elif key not in SPECIAL:
            value, default = _value(node, key, inner), _default(defaults, key)
            if value is _LATER:
                continue
            if found is not None:
                _check_parameter(found, str(node["_target_"]), str(key), value, default, inner)
            elif defaults is not None and not _is_object(value):
                _check_plain(value, defaults, str(key), inner)
            for child, at in _children(value, inner):
                is_known = found is None or "_target_" in child
                _check_node(child, default if is_known and isinstance(default, DictConfig) and _same_target(child, default) else None, at)


def _check_plain(value: Any, defaults: DictConfig, key: str, path: str) -> None:
    """A value outside any `_target_`, which is of its default's kind or nobody's business."""
    if key not in set(defaults.keys()):  # a missing value is not `in` a DictConfig
        raise InputError(f"{path}: nothing reads such a key{did_you_mean(key, (str(k) for k in defaults if k != 'hydra'))}")
    default = _plain(_default(defaults, key))
    if not _is_object(defaults._get_node(key)) and not like(default, _plain(value)):
        raise InputError(f"{path} must be {kind(default)}, got {_shown(value)}")


def _check_parameter(found: Signature, target: str, key: str, value: Any, default: Any, path: str) -> None:
    if path in OF_BUILD:
        annotation, module = ast.parse(OF_BUILD[path], mode="eval").body, ""
        verdict, wanted = fits(annotation, _plain(value), module), words(annotation, module)
    elif key not in found.parameters:
        if not found.is_open:
            raise InputError(f"{path}: {target.rpartition('.')[2]} has no parameter {key!r}{did_you_mean(key, found.parameters)}")
        verdict, wanted = None, ""
    else:
        annotation, module = found.parameters[key]
        verdict = None if annotation is None or _is_object(value) else fits(annotation, _plain(value), module)
        wanted = words(annotation, module) if annotation is not None else ""
    if verdict is None and value is not None and not _is_object(value):
        is_word_for_object = _is_object(default) and not target.startswith(OURS)
        plain = None if is_word_for_object else _plain(default)
        verdict, wanted = like(plain, _plain(value)), kind(plain)
    if verdict is False:
        hint = f": write {int(value)}" if isinstance(value, float) and wanted.startswith("an integer") and value.is_integer() else ""
        hint = f""": quote it, '{path}="{value}"'""" if wanted.startswith("text") and isinstance(value, int) else hint
        raise InputError(f"{path} must be {wanted or 'of another kind'}, got {_shown(value)}{hint}")


def _target(node: DictConfig, path: str) -> Signature:
    """The signature behind a node's `_target_`, if it may be called at all."""
    target = node.get("_target_")
    where = f"{path}._target_" if path else "_target_"
    module, _, name = str(target).rpartition(".")
    if str(target).startswith(OURS):
        found = signature(str(target))
        if found is None:
            raise InputError(f"{where} names {target}, which does not exist: correct the yaml that says so")
        return found
    if module not in ALLOWED or not name.isidentifier():
        raise InputError(f"{where} is {target}: a configuration makes only classes of sae_lightning, lightning, torch.optim, torchmetrics")
    found = signature(str(target))
    if found is None:
        raise InputError(f"{where} names {target}, which {module} does not define{_similar(module, name)}")
    return found


def _similar(module: str, name: str) -> str:
    file = source_file(module)
    text = file.read_text(encoding="utf-8") if file else ""
    return did_you_mean(name, {w.strip('",') for w in text.split() if w.startswith('"') and w.strip('",').isidentifier()})


def _check_hydra(node: DictConfig) -> None:
    for path, target in _targets(node, "hydra"):
        if not target.startswith((OURS, *FOR_HYDRA)):
            raise InputError(f"{path} is {target}, which is no plugin or callback of Hydra's")


def _targets(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for key in node:
            if key == "_target_":
                yield f"{path}._target_", str(node[key])
            else:
                yield from _targets(node._get_node(key), f"{path}.{key}")


def _check_strategy(cfg: DictConfig) -> None:
    """Strategies that cut any tensor anywhere would cut latents' rows apart, which selection and projection take whole."""
    strategy = OmegaConf.select(cfg, "trainer.strategy", throw_on_missing=False)
    name = str(strategy.get("_target_", "")).rpartition(".")[2] if OmegaConf.is_dict(strategy) else str(strategy)
    if name.startswith(SHARDED):
        raise InputError(f"trainer.strategy={name} {NOT_SHARDED}")


_LATER = object()


def _value(node: DictConfig, key: Any, path: str) -> Any:
    """A value with its interpolations resolved; `_LATER` for one that needs a running job, where there is none."""
    try:
        return node[key]
    except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
        raise InputError(f"{path} must be given: add {path}=…") from error
    except OmegaConfBaseException as error:
        if "HydraConfig was not set" in str(error):
            return _LATER
        raw = node._get_node(key)
        text = raw._value() if isinstance(raw, Node) else raw
        raise InputError(f"{path} is {text}, which cannot be resolved: {str(error).splitlines()[0]}") from error


def _default(defaults: DictConfig | None, key: Any) -> Any:
    """None where there is no default to compare with."""
    try:
        return None if defaults is None else defaults.get(key)
    except (OmegaConfBaseException, InputError):
        return None


def _children(value: Any, path: str) -> Iterator[tuple[DictConfig, str]]:
    if isinstance(value, DictConfig):
        yield value, path
    elif isinstance(value, ListConfig):
        yield from ((item, f"{path}.{i}") for i, item in enumerate(value) if isinstance(item, DictConfig))


def _same_target(a: DictConfig, b: DictConfig) -> bool:
    return a.get("_target_") == b.get("_target_")


def _is_object(value: Any) -> bool:
    """A node that becomes an object, alone or in a list."""
    if isinstance(value, ListConfig):
        return any(_is_object(item) for item in value)
    return isinstance(value, DictConfig) and "_target_" in value


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(_plain(value))
