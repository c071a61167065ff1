"""SAEs on the Hugging Face hub: what `push` writes there. `load_sae` reads it."""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lightning.errors import InputError
from sae_lightning.files import write_text
from sae_lightning.formats import by_name, write
from sae_lightning.formats.card import UNNAMED, card
from sae_lightning.formats.density import density_of
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import exported, load_sae
from sae_lightning.transformers.hub import first_line, reachable

USUAL = "saelens"
"""The format beside ours, where nothing else is asked for and it can hold the SAE."""


def assemble(sae: str | Path, repository: str, folder: Path, others: Sequence[str] | None = None, licence: str = UNNAMED) -> list[str]:
    """Writes what the repository is to hold into `folder`: ours, README.md, scores.json and plots, and a folder for each other format.

    sae: as `load_sae` takes it. others: names of formats; None: SAELens', if it can hold it. Returns the names of the files.
    Errors: InputError for a name that is no repository, a format that cannot hold it, and a folder that is not empty.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or ".." in repository:
        raise InputError(f"'{repository}' is no repository of the hub: write owner/name")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: choose another folder")
    place = exported(sae)
    loaded = load_sae(place)
    density = density_of(place, loaded)
    chosen = [name for name in [USUAL] if by_name(name).refusal(loaded) is None] if others is None else list(dict.fromkeys(others))
    for name in chosen:
        write(loaded, folder / name, name, density)
    loaded.save(folder)
    content = _scores_of(place, loaded)
    pictures = _pictures(place, folder) if content else []
    if content:
        write_text(folder / "scores.json", json.dumps(content, indent=2) + "\n")
    usage = {name: by_name(name).usage(repository, name) for name in chosen}
    write_text(folder / "README.md", card(loaded, repository, usage, _numbers(content), pictures, licence))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def push(sae: str | Path, repository: str, others: Sequence[str] | None = None, licence: str = UNNAMED, private: bool = False) -> str:
    """Makes the repository where there is none, and puts the files of `assemble` into it in one commit; returns its address.

    Errors: InputError, also without a network, without a token, and for what the hub refuses.
    """
    from huggingface_hub import HfApi, get_token

    if not reachable():
        raise InputError("the hub cannot be reached: connect to the network, or write the files with --dry-run FOLDER and push them later")
    if get_token() is None:
        raise InputError("the hub wants to know who you are: run `hf auth login`, or set HF_TOKEN")
    with tempfile.TemporaryDirectory(prefix="sae-push-") as temporary:
        assemble(sae, repository, Path(temporary) / "sae", others, licence)
        try:
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=Path(temporary) / "sae", commit_message="Add an SAE").commit_url)
        except Exception as error:  # of the hub's client, and of what it is built on
            raise InputError(f"the hub refuses {repository}: {first_line(error)}") from error


def _scores_of(place: Path, sae: InferenceSAE) -> dict[str, Any]:
    """scores.json beside it or in its run, if it is of this SAE; {} where there is none."""
    from sae_lightning.evaluation.run import digest

    own = digest(sae)
    for folder in (place, place.parent):
        with contextlib.suppress(OSError, ValueError):
            content = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
            if content["sae"]["digest"] == own:
                return content
    return {}


def _numbers(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {row: {name: value for name, value in named.items() if value is not None} for row, named in content.get("scores", {}).items()}


def _pictures(place: Path, folder: Path) -> list[Path]:
    """Copies what was drawn of the run into `folder`/plots; returns the paths within `folder`."""
    run = place.parent if place.name == "sae" else place
    found = [*sorted(run.glob("*.png")), *sorted((run / "plots").glob("*.png"))]
    for path in found:
        (folder / "plots").mkdir(exist_ok=True)
        shutil.copyfile(path, folder / "plots" / path.name)
    return [Path("plots") / path.name for path in found]
