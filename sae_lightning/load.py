"""From a path to something that encodes."""

from pathlib import Path

import torch

from sae_lightning import inference
from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE


def load_sae(path: str | Path, device: str | torch.device = "cpu") -> InferenceSAE:
    """The exported SAE of a run, ready to use: `path` is the run's folder or the folder `sae` in it.

    Nothing is unpickled: json and safetensors only. Errors: InputError when there is none, or it is not ours, or it is damaged.
    """
    return inference.read(exported(path)).to(device)


def exported(path: str | Path) -> Path:
    """The folder of an exported SAE: `path` itself, or the folder `sae` in it. Errors: InputError where there is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name a run's folder or the folder `sae` in it")
    for found in (folder, folder / "sae"):
        if (found / "sae.json").is_file():
            return found
    raise InputError(f"{folder} holds no exported SAE: name a run that has ended, or a folder with sae.json")
