"""SAELens (github.com/decoderesearch/SAELens), as version 6.54 writes and reads it: cfg.json and sae_weights.safetensors.

W_enc [d_in, d_sae], W_dec [d_sae, d_out], b_enc, b_dec; threshold (old: log_threshold) of jumprelu; b_gate, b_mag and r_mag of gated, in
place of b_enc; W_skip [d_out, d_in]. Folders of versions before 6 have all of cfg.json on one level.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.files import replacing, write_json
from sae_lightning.formats.base import (
    Format,
    assembled,
    check_size,
    checked,
    hooks_known,
    is_relu,
    is_transcoder,
    of_no_other,
    transformer_of,
)
from sae_lightning.formats.files import read_json, read_safetensors
from sae_lightning.formats.folding import Weights, one_gate, subtracting, weights_of, with_unit_decoder
from sae_lightning.inference import InferenceSAE
from sae_lightning.transformers.hook_names import to_name

CONFIG, WEIGHTS, SPARSITY, SCALER = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "activation_scaler.json"
LAYOUT = "6.54.12"
"""The version whose layout is written; from a folder that names none it expects the layout before 6."""
NEVER_FIRED = 1e-10
"""Added to a density before its logarithm is taken."""
TRAINING = ("batchtopk", "matryoshka_batchtopk")
"""What a checkpoint of a training calls those that are saved as jumprelu in the end."""
AUTOENCODERS = ("standard", "gated", "topk", "jumprelu", *TRAINING)
GATE = ("r_mag", "b_gate", "b_mag")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


class SAELens(Format):
    """Everything but top-k transcoders. What is known of hook points and transformer goes into its metadata, and all else of ours beside it.

    Reading refuses an input that is normalised row by row, and folds one number that all rows were multiplied by.
    """

    def recognises(self, path: Path) -> bool:
        return (path / WEIGHTS).is_file() or (path.name == WEIGHTS and path.is_file())

    # -- read -----------------------------------------------------------------------------------------------------------

    def read(self, path: Path) -> InferenceSAE:
        folder = path if path.is_dir() else path.parent
        cfg = read_json(folder / CONFIG)
        held = read_safetensors(folder / WEIGHTS)
        metadata = cfg["metadata"] if isinstance(cfg.get("metadata"), dict) else cfg
        kind, k = _kind(folder, cfg)
        is_pair, rescales = kind in TRANSCODERS, bool(cfg.get("rescale_acts_by_decoder_norm"))
        _check_input(folder, cfg, held)
        weights = checked(folder, _named(folder, kind, held))
        if kind == "gated":
            weights |= one_gate(weights["W_enc"], *(weights.pop(name) for name in GATE))
        if rescales and kind in ("topk", *TRAINING):
            threshold = {name: weights.pop(name) for name in ("threshold",) if name in weights}
            weights = with_unit_decoder(weights) | threshold
        about = _about(folder, kind, metadata, is_pair)
        subtract = bool(cfg.get("apply_b_dec_to_input", True)) and not is_pair
        sae = assembled(folder, weights, subtract=subtract, k=k, about=about, config={"format": self.name, **cfg})
        check_size(folder, sae, cfg.get("d_in"), cfg.get("d_sae"))
        return _unscaled(folder, cfg, sae, rescales)

    def density(self, path: Path) -> Tensor | None:
        file = (path if path.is_dir() else path.parent) / SPARSITY
        found = read_safetensors(file).get("sparsity") if file.is_file() else None
        return None if found is None or not found.is_floating_point() else (10 ** found.double() - NEVER_FIRED).clamp(min=0)

    # -- write ----------------------------------------------------------------------------------------------------------

    def usage(self, repository: str, folder: str) -> str:
        return f'from sae_lens import SAE\n\nsae = SAE.from_pretrained("{repository}", "{folder}", device="cpu")'

    def refusal(self, sae: InferenceSAE) -> str | None:
        if is_transcoder(sae) and sae.k is not None:
            return "it is a top-k transcoder, and its transcoders have relu or a threshold"
        return of_no_other(sae)

    def write(self, sae: InferenceSAE, folder: Path, density: Tensor | None = None) -> str:
        is_pair = is_transcoder(sae)
        sae = subtracting(sae, False) if is_pair else sae
        kind = "topk" if sae.k is not None else "standard" if is_relu(sae) else "jumprelu"
        if is_pair:
            kind = ("" if kind == "standard" else f"{kind}_") + ("transcoder" if sae.W_skip is None else "skip_transcoder")
        weights = weights_of(sae)
        weights["W_enc"] = weights["W_enc"].T.contiguous()
        if "jumprelu" not in kind:
            weights.pop("threshold", None)
        cfg: dict[str, Any] = {
            "architecture": kind, "d_in": sae.W_enc.shape[1], "d_sae": sae.d_sae, "dtype": str(sae.W_enc.dtype).removeprefix("torch."), "device": "cpu",
            "apply_b_dec_to_input": sae.subtract, "normalize_activations": "none", "reshape_activations": "none", "metadata": _metadata(sae),
        }  # fmt: skip
        cfg |= {"d_out": sae.W_dec.shape[1]} if is_pair else {}
        cfg |= {"k": sae.k, "rescale_acts_by_decoder_norm": False} if sae.k is not None else {}
        with replacing(folder / WEIGHTS) as temporary:
            save_file(weights, temporary)
        if density is not None:
            with replacing(folder / SPARSITY) as temporary:
                save_file({"sparsity": (density.double() + NEVER_FIRED).log10().float()}, temporary)
        write_json(folder / CONFIG, cfg)
        return kind


def _kind(folder: Path, cfg: Mapping[str, Any]) -> tuple[str, Any]:
    """Architecture and k. Errors: InputError for one that computes what our SAEs cannot."""
    kind, k = cfg.get("architecture", "standard"), cfg.get("k")
    old = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    if "metadata" not in cfg and old == "topk":
        words = cfg.get("activation_fn_kwargs")
        kind, k = "topk", words.get("k") if isinstance(words, dict) else k
    elif "metadata" not in cfg and old != "relu":
        raise InputError(f"{folder} has activation {str(old)[:40]!r}: relu, top-k and thresholds can be read")
    if kind not in (*AUTOENCODERS, *TRANSCODERS):
        raise InputError(f"{folder} is of architecture {str(kind)[:40]!r}: {', '.join((*AUTOENCODERS, *TRANSCODERS))} can be read")
    return kind, k if kind == "topk" else None


def _check_input(folder: Path, cfg: Mapping[str, Any], held: Weights) -> None:
    """Errors: InputError where rows are changed in a way that is no constant, or that the folder does not hold."""
    normalised = cfg.get("normalize_activations") or "none"
    scaled = normalised is True or normalised == "expected_average_only_in"
    if scaled and not (folder / SCALER).is_file():
        raise InputError(
            f"{folder} expects rows times a number that is not in the folder: call fold_activation_norm_scaling_factor in SAELens, and save it"
        )
    if not scaled and normalised not in ("none", False):
        raise InputError(
            f"{folder} normalises rows by {str(normalised)[:40]!r}: only 'none' can be read, and what SAELens folds in where it saves for inference"
        )
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in held and not bool((held[name] == 1).all()):
            raise InputError(
                f"{folder} multiplies latents by {name} after it encoded them: multiply W_dec's rows by it, and save it without"
            )


def _named(folder: Path, kind: str, held: Weights) -> Weights:
    """By our names and axes. Errors: InputError for a weight that is missing."""
    names = {name: name for name in ("W_enc", "W_dec", "b_dec", *(GATE if kind == "gated" else ("b_enc",)))}
    if "jumprelu" in kind:
        names["threshold"] = "log_threshold" if "log_threshold" in held else "threshold"
    elif kind in TRAINING:
        names["threshold"] = "topk_threshold"
    if "skip" in kind:
        names["W_skip"] = "W_skip"
    if missing := sorted(set(names.values()) - set(held)):
        raise InputError(f"{folder / WEIGHTS} holds no {', '.join(missing)}: copy it again")
    weights = {ours: held[theirs] for ours, theirs in names.items()}
    if names.get("threshold") == "log_threshold":
        weights["threshold"] = weights["threshold"].exp()
    elif "b_enc" in names and "threshold" not in names and kind != "topk":
        weights["threshold"] = torch.zeros_like(weights["b_enc"])
    return weights | {"W_enc": weights["W_enc"].mT if weights["W_enc"].ndim == 2 else weights["W_enc"]}


def _unscaled(folder: Path, cfg: Mapping[str, Any], sae: InferenceSAE, rescales: bool) -> InferenceSAE:
    """A checkpoint of a training on rows that were multiplied by c: W_enc × c, W_dec and b_dec / c, as its own folding does."""
    if (cfg.get("normalize_activations") or "none") in ("none", False):
        return sae
    c = read_json(folder / SCALER).get("scaling_factor")
    if c is None:
        return sae
    if not isinstance(c, int | float) or isinstance(c, bool) or not 0 < c < 1e30:
        raise InputError(f"{folder / SCALER} says a scaling_factor of {str(c)[:40]}: it must be a positive number")
    s = torch.full((sae.W_enc.shape[1],), 1 / c, dtype=sae.W_enc.dtype)
    return sae.rescaled(s, s, s[0] if rescales else torch.ones_like(s[0]))


# -- what is known of it --------------------------------------------------------------------------------------------------


def _metadata(sae: InferenceSAE) -> dict[str, Any]:
    """`hook_name` is TransformerLens's name of the hook point where it is known, `hf_hook_name` the module's path."""
    hooks = sae.about.get("hooks") or {}
    known: dict[str, Any] = {"sae_lens_version": LAYOUT, "sae_lens_training_version": None, "model_name": transformer_of(sae)}
    for side, suffix in (("x", ""), ("y", "_out")):
        hook = next(iter(hooks.get(side) or []), None)
        if hook is not None and (side == "x" or is_transcoder(sae)):
            known |= {f"hook_name{suffix}": to_name(hook) or hook, f"hf_hook_name{suffix}": hook}
    return known | {"sae_lightning": {key: value for key, value in sae.about.items() if key != "imported"}}


def _about(folder: Path, kind: str, metadata: Mapping[str, Any], is_pair: bool) -> dict[str, Any]:
    said = metadata.get("sae_lightning")
    ours = said if isinstance(said, Mapping) else {}
    known = {key: ours[key] for key, form in (("architecture", str), ("step", int), ("rows", int)) if type(ours.get(key)) is form}
    name = metadata.get("model_name")
    transformer = ours["transformer"] if isinstance(ours.get("transformer"), dict) else {"name": name} if isinstance(name, str) else None
    hooks = hooks_known(folder, _hook(metadata, ""), _hook(metadata, "_out"))
    return {"architecture": kind, **known, "views": "pair" if is_pair else "one", **hooks} | (
        {} if transformer is None else {"transformer": transformer}
    )


def _hook(metadata: Mapping[str, Any], suffix: str) -> Any:
    """The path of the module where it is known: others write model.layers.3.output, and .input for ours with :in."""
    path = metadata.get(f"hf_hook_name{suffix}")
    if isinstance(path, str):
        return path.removesuffix(".output").replace(".input", ":in") if path.endswith((".input", ".output")) else path
    return metadata.get(f"hook_name{suffix}", metadata.get(f"hook_point{suffix}"))
