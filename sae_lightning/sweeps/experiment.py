"""A command as a file that one can choose: `experiment=…`."""

from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from sae_lightning.run.composer import parsed

NOT_OF_A_RUN = ("hydra", "sweep", "resume")


def as_experiment(words: Sequence[str], loader: ConfigLoader, about: str) -> str:
    """The yaml of a run's choices and values. `about`: what its first lines say, with the command itself.

    A word that takes a key away (~key) has no place in a yaml: it stands in the command alone.
    """
    said = [parsed(word) for word in words]
    said = [o for o in said if o.key_or_group.split(".")[0].split("/")[0] not in NOT_OF_A_RUN]
    values = OmegaConf.create({})
    choices = []
    for override in said:
        if override.is_delete():
            continue
        if _is_group(override, loader):
            choices.append({f"override /{override.key_or_group}": override.value()})
        else:
            OmegaConf.update(values, override.key_or_group, override.value(), force_add=True)
    lines = ["# @package _global_", f"# {about}", f"# python train.py {' '.join(str(o.input_line) for o in said)}"]
    body = OmegaConf.to_yaml(OmegaConf.create({"defaults": [*choices, "_self_"]} if choices else {}))
    return "\n".join(lines) + "\n" + (body if choices else "") + (OmegaConf.to_yaml(values) if values else "")


def _is_group(override: Override, loader: ConfigLoader) -> bool:
    return bool(loader.get_group_options(override.key_or_group, ObjectType.CONFIG))
