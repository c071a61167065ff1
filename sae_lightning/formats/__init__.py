"""SAEs of other libraries: `read` any known format, `write` any of them. A module here with a `Format` in it is a format."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.formats.base import Format
from sae_lightning.inference import InferenceSAE
from sae_lightning.shapes import Float


@cache
def formats() -> list[Format]:
    """One of each, by name."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__) if found.name != "__main__"]
    kinds = [
        value for module in modules for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return sorted((kind() for kind in kinds if issubclass(kind, Format) and kind is not Format), key=lambda made: made.name)


def by_name(name: str) -> Format:
    """Errors: InputError, which lists them, for a name that is none."""
    for one in formats():
        if one.name == name:
            return one
    raise InputError(f"there is no format '{name}': choose one of {', '.join(one.name for one in formats())}")


def recognised(path: str | Path) -> Format | None:
    """The format of a folder or a file, by the names in it."""
    return next((one for one in formats() if one.recognises(Path(path))), None)


def read(path: str | Path, name: str | None = None) -> InferenceSAE:
    """The SAE in a folder or a file of a known format, or of the one called `name`.

    Latents, reconstruction and dtype are the library's (float16 and bfloat16 are widened to float32). Its configuration stands in
    about["imported"]. Errors: InputError for what is not recognised, damaged, or computes what our SAEs cannot.
    """
    found = recognised(path) if name is None else by_name(name)
    if found is None:
        raise InputError(f"{path} holds no SAE of a known format, {', '.join(one.name for one in formats())}{below(Path(path))}")
    return found.read(Path(path))


def write(sae: InferenceSAE, folder: str | Path, name: str, density: Float[Tensor, " d_sae"] | None = None) -> str:
    """Writes it into `folder` in the format called `name`; returns what it is called there.

    Errors: InputError with the reason and the formats that can, where this one cannot hold it; and when the disk is full.
    """
    chosen = by_name(name)
    if (reason := chosen.refusal(sae)) is not None:
        others = [one.name for one in formats() if one.refusal(sae) is None]
        nearest = f"the nearest that can: --to {' or '.join(others)}" if others else "no format here can, load_sae takes its own folder"
        raise InputError(f"{name} cannot hold this SAE: {reason}; {nearest}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return chosen.write(sae, Path(folder), density)


def below(path: Path) -> str:
    """Where a folder is none, but holds some: the end of a line that says so."""
    try:
        found = sorted(inner.name for inner in path.iterdir() if inner.is_dir() and recognised(inner))
    except OSError:
        return ""
    return f": name one of the folders in it, {', '.join(found[:5])}{', …' if len(found) > 5 else ''}" if found else ""
