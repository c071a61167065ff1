"""From a path to something that encodes."""

from pathlib import Path

import torch

from sae_lightning import inference
from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE


def load_sae(path: str | Path, device: str | torch.device = "cpu") -> InferenceSAE:
    """The exported SAE of a run, ready to use: `path` is the run's folder, the folder `sae` in it, or an SAE of another library.

    Other libraries' (`sae_lightning.formats`) are recognised by their files. What is no path here may be owner/name or owner/name/folder
    on the Hugging Face hub. Nothing in a file is run.
    Errors: InputError when there is none, or it is not of a known format, or it is damaged.
    """
    place = exported(path)
    if (place / "sae.json").is_file():
        return inference.read(place).to(device)
    from sae_lightning import formats

    return formats.read(place).to(device)


def exported(path: str | Path) -> Path:
    """The folder of an exported SAE: `path` itself, or the folder `sae` in it; of another library also a file.

    Errors: InputError where there is none.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        from sae_lightning.formats import hub

        if (fetched := hub.fetch(str(path))) is not None:
            return exported(fetched)
        raise InputError(f"{folder} is not a folder: name a run's folder or the folder `sae` in it")
    for found in (folder, folder / "sae"):
        if (found / "sae.json").is_file():
            return found
    from sae_lightning import formats

    if formats.recognised(folder) is None:
        where = formats.below(folder) or ": name a run that has ended, a folder with sae.json, or an SAE of another library"
        raise InputError(f"{folder} holds no exported SAE{where}")
    return folder
