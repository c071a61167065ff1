"""Every yaml of the two groups is what it says."""

import importlib
import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = [path for group in ("callbacks", "logger") for path in sorted((CONF / group).glob("*.yaml"))]
SINGLE = [path for path in OPTIONS if path.stem not in ("default", "none")]


@pytest.mark.parametrize("path", SINGLE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_option_is_one_part_under_its_own_name_with_all_its_parameters(path):
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    assert list(content) == [path.stem]
    settings = content[path.stem]
    module, name = settings.pop("_target_").rsplit(".", 1)
    target = getattr(importlib.import_module(module), name)
    assert issubclass(target, Callback if path.parent.name == "callbacks" else Logger)
    parameters = inspect.signature(target).parameters
    if module.startswith("sae_lightning."):
        assert set(settings) == set(parameters)
        for key, value in settings.items():
            default = parameters[key].default
            assert default in (value, inspect.Parameter.empty) or str(value).startswith("${"), key
    else:
        assert set(settings) <= set(parameters) or any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())


@pytest.mark.parametrize(
    ("words", "callbacks", "loggers"),
    [
        ([], {}, {"csv"}),
        (["logger=none"], {}, set()),
        (["logger=[csv,wandb]"], {}, {"csv", "wandb"}),
        (["logger=tensorboard"], {}, {"tensorboard"}),
        (["callbacks=[default,resample]"], {"resample"}, {"csv"}),
    ],
)
def test_several_at_once(words, callbacks, loggers):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", words)
    default = {line.strip("- ") for line in (CONF / "callbacks" / "default.yaml").read_text().splitlines() if line.startswith("  - ")}
    assert set(cfg.callbacks) == default | set(callbacks)
    assert set(cfg.logger) - {"names"} == loggers
