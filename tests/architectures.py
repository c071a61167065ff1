"""Every architecture in conf/model, and words that make a small run of it; nothing here names one of them."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf" / "model"
KNOBS: dict[str, list[float]] = {"k": [2, 4, 8, 12], "target_l0": [2.0, 4.0, 8.0, 12.0], "sparsity": [0.3, 0.1, 0.03, 0.01]}
"""Parameters that say how sparse an SAE is, from sparse to dense, for rows of width 16 with 3 active directions."""


def settings(model: str, *words: str) -> Any:
    """Its parameters, those of its own groups (model/revival) included, after these words of a command."""
    from sae_lightning.run.check import OF_BUILD
    from sae_lightning.run.composer import Composer

    node = Composer(CONF.parent, "train").compose([f"model={model}", *words]).model
    kept = OmegaConf.to_container(node, resolve=True)
    assert isinstance(kept, dict)
    return OmegaConf.create({key: value for key, value in kept.items() if f"model.{key}" not in OF_BUILD})


@cache
def yaml(model: str) -> Any:
    """What its own file holds."""
    return OmegaConf.load(CONF / f"{model}.yaml")


ALL = sorted(path.stem for path in CONF.glob("*.yaml"))
MODELS = [model for model in ALL if not yaml(model)._target_.startswith("sae_lightning.models.null.")]
"""Those that are trained."""


def knob(model: str) -> str:
    """Which of KNOBS an architecture has."""
    found = [name for name in KNOBS if yaml(model).get(name) is not None]
    assert found, f"{model} says nothing of its sparsity: add its parameter to KNOBS"
    return found[0]


def fitting(model: str) -> str:
    """The middle value of its knob, as a word of a command."""
    return f"model.{knob(model)}={KNOBS[knob(model)][1]}"
