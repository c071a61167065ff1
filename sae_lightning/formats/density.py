"""How often each latent fires: a file beside scores.json, and beside an SAE of another library that said so."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from sae_lightning.files import replacing
from sae_lightning.formats import recognised
from sae_lightning.formats.files import read_safetensors
from sae_lightning.inference import InferenceSAE
from sae_lightning.shapes import Float

DENSITY = "density.safetensors"


def write_density(folder: Path, density: Float[Tensor, " d_sae"]) -> None:
    """`density`: share of rows in which each latent fires."""
    with replacing(folder / DENSITY) as temporary:
        save_file({"density": density.contiguous()}, temporary)


def read_density(folder: Path) -> Tensor | None:
    """Of the SAE in `folder`; that of a run, its folder `sae`, was evaluated into the run's. None where nothing is known.

    Errors: InputError for a damaged file.
    """
    places = [folder, folder.parent] if folder.name == "sae" else [folder]
    file = next((place / DENSITY for place in places if (place / DENSITY).is_file()), None)
    return None if file is None else read_safetensors(file).get("density")


def density_of(place: Path, sae: InferenceSAE) -> Float[Tensor, " d_sae"] | None:
    """Of the exported SAE in `place`, ours or another library's; None where it is not known, or is of another one."""
    foreign = None if (place / "sae.json").is_file() else recognised(place)
    found = read_density(place) if foreign is None else foreign.density(place)
    return found if found is not None and found.shape == (sae.d_sae,) else None
