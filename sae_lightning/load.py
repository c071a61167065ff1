"""From a path to something that encodes."""

import re
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
        if (fetched := _fetched(str(path))) is not None:
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


def _fetched(name: str) -> Path | None:
    """The folder of owner/name or owner/name/folder in the hub's cache, fetched first; None for what cannot be such a name.

    Only what SAEs are made of is fetched. Errors: InputError where the hub has no such thing, or cannot be asked.
    """
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?", name)
    if found is None or name.startswith(".") or ".." in name:
        return None
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    from sae_lightning.transformers.hub import first_line, reachable

    inner = (found[2] or "").strip("/")
    wanted = [f"{inner}/{end}" if inner else end for end in ("*.json", "*.safetensors", "*.npz", "*.pt")]
    try:
        return Path(snapshot_download(found[1], allow_patterns=wanted, local_files_only=not reachable())) / inner
    except Exception as error:  # of the hub's client, and of what it is built on
        raise InputError(f"{name} is no folder here, and the hub gives nothing of that name: {first_line(error)}") from error
