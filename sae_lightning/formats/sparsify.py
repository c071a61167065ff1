"""EleutherAI's sparsify: the folder of a hook point, cfg.json and sae.safetensors.

encoder.weight [d_sae, d], encoder.bias, W_dec [d_sae, d], b_dec, and W_skip [d_out, d_in]: square there, so that a transposed one
passes every check of shapes. b_dec is subtracted from x unless `transcode`; W_skip sees x as it is.
"""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.files import replacing, write_json
from sae_lightning.formats.base import Format, assembled, check_size, checked, hooks_known, is_transcoder, of_no_other
from sae_lightning.formats.files import read_json, read_safetensors
from sae_lightning.formats.folding import subtracting, weights_of
from sae_lightning.inference import InferenceSAE

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


class Sparsify(Format):
    """Top-k only, rows in and out of one width; autoencoders and transcoders, with or without a skip connection."""

    def recognises(self, path: Path) -> bool:
        folder = path if path.is_dir() else path.parent
        return (path.is_dir() or path.name == WEIGHTS) and (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()

    def read(self, path: Path) -> InferenceSAE:
        folder = path if path.is_dir() else path.parent
        cfg, held = read_json(folder / CONFIG), read_safetensors(folder / WEIGHTS)
        activation = cfg.get("activation", "topk")
        if activation != "topk" or cfg.get("signed"):
            which = "signed top-k" if cfg.get("signed") else repr(str(activation)[:40])
            raise InputError(f"{folder} has activation {which}, the largest of each group or by size: only top-k can be read")
        wanted = NAMES | ({"W_skip": "W_skip"} if cfg.get("skip_connection") else {})
        if missing := sorted(set(wanted) - set(held)):
            raise InputError(f"{folder / WEIGHTS} holds no {', '.join(missing)}: save it with its decoder, or copy it again")
        weights = checked(folder, {ours: held[theirs] for theirs, ours in wanted.items()})
        is_pair = bool(cfg.get("transcode"))
        about = {"architecture": "topk", "views": "pair" if is_pair else "one", **_hooks(folder, is_pair)}
        sae = assembled(folder, weights, subtract=not is_pair, k=cfg.get("k"), about=about, config={"format": self.name, **cfg})
        check_size(folder, sae, cfg.get("d_in"), cfg.get("num_latents") or None)
        return sae

    def usage(self, repository: str, folder: str) -> str:
        return f'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_hub("{repository}", hookpoint="{folder}")'

    def refusal(self, sae: InferenceSAE) -> str | None:
        if sae.k is None:
            return "it has a threshold per latent, and only top-k is known there"
        if sae.W_enc.shape[1] != sae.W_dec.shape[1]:
            return f"it reads rows of width {sae.W_enc.shape[1]} and writes {sae.W_dec.shape[1]}, which must be one width there"
        return of_no_other(sae)

    def write(self, sae: InferenceSAE, folder: Path, density: Tensor | None = None) -> str:
        is_pair = sae.about.get("views") == "pair" or (is_transcoder(sae) and not sae.subtract)
        sae = subtracting(sae, not is_pair)
        weights = weights_of(sae)
        held = {theirs: weights[ours] for theirs, ours in NAMES.items()} | ({} if sae.W_skip is None else {"W_skip": weights["W_skip"]})
        d_in, lengths = sae.W_enc.shape[1], weights["W_dec"].norm(dim=1)
        cfg: dict[str, Any] = {
            "activation": "topk", "expansion_factor": max(1, round(sae.d_sae / d_in)), "normalize_decoder": bool(((lengths - 1).abs() < 1e-3).all()),
            "num_latents": sae.d_sae, "k": sae.k, "multi_topk": False, "skip_connection": sae.W_skip is not None, "transcode": is_pair, "d_in": d_in,
        }  # fmt: skip
        with replacing(folder / WEIGHTS) as temporary:
            save_file(held, temporary)
        write_json(folder / CONFIG, cfg)
        return "topk, transcode" if is_pair else "topk"


def _hooks(folder: Path, is_pair: bool) -> dict[str, Any]:
    """Its folder is named as the hook point is; a transcoder's is the module that it stands for."""
    name = folder.resolve().name
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", name):
        return {}
    return hooks_known(folder, f"{name}:in", name) if is_pair else hooks_known(folder, name)
