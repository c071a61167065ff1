"""Gemma Scope (Lieberum et al. 2024, arXiv:2408.05147): params.npz with W_enc [d_in, d_sae], W_dec, b_enc, b_dec and threshold.

b_dec is not subtracted from x. Nothing says which transformer or hook point; transcoders have the same names.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.files import replacing
from sae_lightning.formats.base import Format, assembled, checked, of_no_other
from sae_lightning.formats.files import read_arrays
from sae_lightning.formats.folding import subtracting, weights_of
from sae_lightning.inference import InferenceSAE

WEIGHTS = "params.npz"
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


class GemmaScope(Format):
    """A threshold per latent, no skip connection; autoencoders and transcoders, which nothing there tells apart where their rows have one width."""

    def recognises(self, path: Path) -> bool:
        return (path / WEIGHTS).is_file() or (path.suffix == ".npz" and path.is_file())

    def read(self, path: Path) -> InferenceSAE:
        file = path / WEIGHTS if path.is_dir() else path
        held = read_arrays(file)
        if missing := sorted(set(NAMES) - set(held)):
            raise InputError(f"{file} holds no {', '.join(missing)}: it is no SAE of Gemma Scope, or copy it again")
        weights = {name: held[name] for name in NAMES}
        weights["W_enc"] = weights["W_enc"].mT if weights["W_enc"].ndim == 2 else weights["W_enc"]
        weights = checked(file, weights)
        about = {"architecture": "jumprelu"} | ({"views": "pair"} if weights["W_enc"].shape[1] != weights["W_dec"].shape[1] else {})
        return assembled(file, weights, subtract=False, about=about, config={"format": self.name})

    def usage(self, repository: str, folder: str) -> str:
        return f'import numpy as np\nfrom huggingface_hub import hf_hub_download\n\nweights = np.load(hf_hub_download("{repository}", "{folder}/{WEIGHTS}"))'

    def refusal(self, sae: InferenceSAE) -> str | None:
        if sae.k is not None:
            return "it is top-k, and only a threshold per latent is known there"
        if sae.W_skip is not None:
            return "it has a skip connection, which is not known there"
        return of_no_other(sae)

    def write(self, sae: InferenceSAE, folder: Path, density: Tensor | None = None) -> str:
        weights = weights_of(subtracting(sae, False))
        weights["W_enc"] = weights["W_enc"].T
        with replacing(folder / WEIGHTS) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **{name: np.ascontiguousarray(weights[name].numpy()) for name in NAMES})
        return "jumprelu"
