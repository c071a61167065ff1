"""dictionary_learning (github.com/saprmarks/dictionary_learning): ae.pt, a state_dict, and config.json; also checkpoints/ae_100.pt.

AutoEncoder: bias, encoder.weight [d_sae, d], encoder.bias, decoder.weight [d, d_sae]; AutoEncoderNew: decoder.bias, which is not
subtracted; AutoEncoderTopK and BatchTopKSAE: b_dec, k, one threshold; GatedAutoEncoder: decoder_bias, r_mag, gate_bias, mag_bias;
JumpReluAutoEncoder: W_enc [d, d_sae], b_enc, W_dec, b_dec, threshold, b_dec not subtracted; MatryoshkaBatchTopKSAE: the same with one
threshold, k, group_sizes, and b_dec subtracted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.files import replacing, write_json
from sae_lightning.formats.base import (
    Format,
    assembled,
    checked,
    hooks_known,
    is_relu,
    is_transcoder,
    layer_of,
    of_no_other,
    transformer_of,
)
from sae_lightning.formats.files import read_json, read_pickle
from sae_lightning.formats.folding import Weights, one_gate, subtracting, weights_of
from sae_lightning.inference import InferenceSAE

WEIGHTS, CONFIG = "ae.pt", "config.json"
BACKUP = {"step", "ae"}
"""What a backup in the middle of a run holds, beside the optimizer: weights for rows over `norm_factor`."""
UNSET = "the threshold was never set: every positive latent is active, as in the library itself"


class DictionaryLearning(Format):
    """Autoencoders: relu, top-k, and thresholds, which it can hold where b_dec is not subtracted."""

    def recognises(self, path: Path) -> bool:
        return (path / WEIGHTS).is_file() or (path.suffix == ".pt" and path.is_file())

    def read(self, path: Path) -> InferenceSAE:
        file = path / WEIGHTS if path.is_dir() else path
        held = read_pickle(file)
        found = [folder / CONFIG for folder in (file.parent, file.parent.parent) if (folder / CONFIG).is_file()]
        config = read_json(found[0]) if found and (file.parent.name == "checkpoints" or found[0].parent == file.parent) else {}
        factor = None
        if set(held) >= BACKUP and isinstance(held["ae"], Mapping):
            factor, held = held.get("norm_factor"), dict(held["ae"])
        trainer = config["trainer"] if isinstance(config.get("trainer"), dict) else {}
        kind, weights, subtract, k, notes = _ours(file, held, trainer)
        about = {"architecture": kind, "views": "one", **_known(file, trainer)}
        imported = {"format": self.name, **config} | ({"notes": list(notes)} if notes else {})
        sae = assembled(file, weights, subtract=subtract, k=k, about=about, config=imported)
        return sae if factor is None else _unscaled(file, sae, factor)

    def usage(self, repository: str, folder: str) -> str:
        fetched = f'folder = snapshot_download("{repository}", allow_patterns="{folder}/*")'
        imports = "from dictionary_learning.utils import load_dictionary\nfrom huggingface_hub import snapshot_download"
        return f'{imports}\n\n{fetched}\nsae, config = load_dictionary(folder + "/{folder}", device="cpu")'

    def refusal(self, sae: InferenceSAE) -> str | None:
        return "it is a transcoder, and only autoencoders are known there" if is_transcoder(sae) else of_no_other(sae)

    def write(self, sae: InferenceSAE, folder: Path, density: Tensor | None = None) -> str:
        if sae.k is not None:
            sae, kind = subtracting(sae, True), "AutoEncoderTopK"
        elif is_relu(sae):
            kind = "AutoEncoder" if sae.subtract else "AutoEncoderNew"
        else:
            sae, kind = subtracting(sae, False), "JumpReluAutoEncoder"
        trainer = {
            "dict_class": kind, "activation_dim": sae.W_enc.shape[1], "dict_size": sae.d_sae, "lm_name": transformer_of(sae) or "",
            "layer": layer_of(sae), "submodule_name": sae.about.get("hook"), **({} if sae.k is None else {"k": sae.k}),
        }  # fmt: skip
        with replacing(folder / WEIGHTS) as temporary:
            torch.save(_theirs(sae, kind), temporary)
        write_json(folder / CONFIG, {"trainer": trainer})
        return kind


def _theirs(sae: InferenceSAE, kind: str) -> Weights:
    w = weights_of(sae)
    if kind == "JumpReluAutoEncoder":
        return {"W_enc": w["W_enc"].T.contiguous(), **{name: w[name] for name in ("b_enc", "W_dec", "b_dec", "threshold")}}
    linear = {"encoder.weight": w["W_enc"], "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T.contiguous()}
    if kind == "AutoEncoderTopK":
        return linear | {"b_dec": w["b_dec"], "k": torch.tensor(sae.k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
    return linear | {"bias" if kind == "AutoEncoder" else "decoder.bias": w["b_dec"]}


class _Read(NamedTuple):
    kind: str
    weights: Weights
    subtract: bool
    k: Any = None
    notes: tuple[str, ...] = ()


def _ours(file: Path, held: Mapping[str, Any], trainer: Mapping[str, Any]) -> _Read:
    """What the names of the weights say; top-k and batch top-k have the same, and `trainer` says which it is."""
    common = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
    if "W_enc" in held:
        w = _named(file, held, {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}, "W_enc")
        return _with_one_threshold("MatryoshkaBatchTopKSAE", w) if "group_sizes" in held else _Read("JumpReluAutoEncoder", w, False)
    if "gate_bias" in held:
        w = _named(file, held, common | {"b_dec": "decoder_bias", "r_mag": "r_mag", "b_gate": "gate_bias", "b_mag": "mag_bias"}, "W_dec")
        return _Read("GatedAutoEncoder", w | one_gate(w["W_enc"], *(w.pop(name) for name in ("r_mag", "b_gate", "b_mag"))), True)
    common["b_enc"] = "encoder.bias"
    if "b_dec" not in held:
        bias = "bias" if "bias" in held else "decoder.bias"
        w = _named(file, held, common | {"b_dec": bias}, "W_dec")
        return _Read("AutoEncoder" if bias == "bias" else "AutoEncoderNew", w | {"threshold": torch.zeros_like(w["b_enc"])}, bias == "bias")
    kind, common["b_dec"] = trainer.get("dict_class"), "b_dec"
    if kind == "AutoEncoderTopK":
        return _Read(kind, _named(file, held, common, "W_dec"), True, _k(file, held.get("k"), trainer.get("k")))
    if kind == "BatchTopKSAE":
        return _with_one_threshold(kind, _named(file, held, common | {"threshold": "threshold"}, "W_dec"))
    said = "has no config.json beside it" if kind is None else f"is said to be a {str(kind)[:40]!r}"
    raise InputError(
        f"{file} {said}: trainer.dict_class there must say whether it is AutoEncoderTopK or BatchTopKSAE, whose weights are alike"
    )


def _with_one_threshold(kind: str, w: Weights) -> _Read:
    return _Read(kind, w, True, notes=(UNSET,) if float(w["threshold"].max()) < 0 else ())


def _k(file: Path, held: Any, said: Any) -> Any:
    """Errors: InputError where weights and configuration say different ones."""
    is_number = isinstance(held, Tensor) and held.numel() == 1 and not held.is_floating_point() and not held.is_complex()
    k = int(held) if is_number else said
    if said is not None and said != k:
        raise InputError(f"{file} has k {k}, its configuration {str(said)[:40]}: they are not of one SAE, copy it again")
    return k


def _named(file: Path, held: Mapping[str, Any], names: Mapping[str, str], transposed: str) -> Weights:
    """By our names and axes. Errors: InputError for a weight that is missing, or of another shape."""
    if missing := sorted(name for name in names.values() if not isinstance(held.get(name), Tensor)):
        raise InputError(f"{file} holds no {', '.join(missing)}: it is no state_dict of a dictionary that can be read, or copy it again")
    found = {ours: held[theirs] for ours, theirs in names.items()}
    return checked(file, found | {transposed: found[transposed].mT if found[transposed].ndim == 2 else found[transposed]})


def _unscaled(file: Path, sae: InferenceSAE, factor: Any) -> InferenceSAE:
    """Biases and threshold × norm_factor: rows of the run were divided by it."""
    is_tensor = isinstance(factor, Tensor) and factor.numel() == 1 and factor.is_floating_point()
    value = float(factor) if is_tensor or isinstance(factor, int | float) else 0.0
    if not 0 < value < 1e30:
        raise InputError(f"{file} says a norm_factor of {str(factor)[:40]}: it must be a positive number")
    s = torch.full((sae.W_enc.shape[1],), value, dtype=sae.W_enc.dtype)
    return sae.rescaled(s, s)


def _known(file: Path, trainer: Mapping[str, Any]) -> dict[str, Any]:
    name, hook = trainer.get("lm_name"), trainer.get("submodule_name")
    transformer = {"transformer": {"name": name}} if isinstance(name, str) and name else {}
    return transformer | (hooks_known(file, hook) if isinstance(hook, str) else {})
