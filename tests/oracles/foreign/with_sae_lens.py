"""SAELens writes, and reads, its own folders; and reads Gemma Scope's params.npz, by its own loader of it."""
# pyright: reportMissingImports=false

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

os.environ.setdefault("WANDB_MODE", "disabled")

import numpy
import sae_lens
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.registry import get_sae_class
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAE
from sae_lens.training.activation_scaler import ActivationScaler

from tests.oracles.foreign.common import D_OUT, D, F, K, Outputs, disturb_, dtype_of, main

METADATA = sae_lens.saes.sae.SAEMetadata(model_name="gpt2", hook_name="blocks.3.hook_resid_post", context_size=64)
PAIR = {"d_out": D_OUT, "apply_b_dec_to_input": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "standard-not_subtracted": ("standard", {"apply_b_dec_to_input": False}),
    "gated": ("gated", {}),
    "topk": ("topk", {"k": K}),
    "topk-rescaled": ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("jumprelu", {"apply_b_dec_to_input": False}),
    "jumprelu-subtracted": ("jumprelu", {}),
    "transcoder": ("transcoder", PAIR),
    "skip_transcoder": ("skip_transcoder", PAIR),
    "jumprelu_transcoder": ("jumprelu_transcoder", PAIR),
    "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", PAIR | {"d_out": D}),
}
OTHERS = ["batch_topk", "batch_topk-rescaled", "matryoshka", "checkpoint", "checkpoint-rescaled", "before_version_6", "gemma_scope"]


def write(folder: Path, case: str) -> None:
    plain = case.removesuffix("-float64")
    common = {"d_in": D, "d_sae": F, "dtype": str(dtype_of(case)).removeprefix("torch."), "metadata": METADATA}
    if plain in CASES or plain in ("before_version_6", "gemma_scope"):
        kind, options = CASES["jumprelu" if plain == "gemma_scope" else "standard" if plain not in CASES else plain]
        sae_class, config = get_sae_class(kind)
        sae = sae_class(config(**common, **options))
        disturb_(sae, len(case))
        sae.save_model(folder)
        if plain == "before_version_6":
            _as_before_6(folder)
        if plain == "gemma_scope":
            weights = {name: value.detach().numpy() for name, value in sae.state_dict().items()}
            shutil.rmtree(folder)
            folder.mkdir()
            numpy.savez(folder / "params.npz", **weights)
        return
    rescales = {"rescale_acts_by_decoder_norm": "rescaled" in plain}
    if plain == "matryoshka":
        sae = MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(**common, **rescales, k=K, matryoshka_widths=[8, F]))
    else:
        normalised = {"normalize_activations": "expected_average_only_in"} if "checkpoint" in plain else {}
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**common, **rescales, **normalised, k=K))
    disturb_(sae, len(case))
    sae.topk_threshold.fill_(0.7)
    if "checkpoint" not in plain:
        sae.save_inference_model(str(folder))
        return
    sae.save_model(str(folder))
    ActivationScaler(scaling_factor=0.31).save(str(folder / "activation_scaler.json"))
    sae.fold_activation_norm_scaling_factor(0.31)
    sae.save_inference_model(str(folder / "in_the_end"))


def _as_before_6(folder: Path) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    kept = {key: cfg[key] for key in ("d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input")}
    old = {"hook_point": "blocks.3.hook_resid_post", "model_name": "gpt2", "activation_fn_str": "relu", "normalize_activations": False}
    (folder / "cfg.json").write_text(json.dumps(kept | old))


def read(folder: Path, case: str, x: Tensor) -> Outputs:
    dtype = str(dtype_of(case)).removeprefix("torch.")
    if (folder / "params.npz").exists():
        sae = _gemma_scope(folder, dtype)
    else:
        place = folder / "in_the_end" if (folder / "in_the_end").exists() else folder
        architecture = json.loads((place / "cfg.json").read_text()).get("architecture", "standard")
        sae = get_sae_class(architecture)[0].load_from_disk(place, dtype=dtype)
    sae.eval()
    return sae.encode(x), sae(x)


def _gemma_scope(folder: Path, dtype: str) -> SAE:
    """By its loader, with the file at hand in place of a download. It makes float32 of all, which is undone."""
    loaders.hf_hub_download = lambda **_: str(folder / "params.npz")
    with numpy.load(folder / "params.npz") as held:
        exact = {name: torch.from_numpy(held[name]) for name in held.files}
    d, latents = exact["W_enc"].shape
    size = {"d_in": d, "d_sae": latents, "dtype": dtype}
    cfg, state, _ = loaders.gemma_2_sae_huggingface_loader(
        "google/gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_9", "cpu", False, size
    )
    cfg = loaders.handle_config_defaulting(cfg)
    kind, config = get_sae_class(cfg["architecture"] if exact["b_dec"].shape == (d,) else "jumprelu_transcoder")
    sae = kind(config.from_dict(cfg | {"d_out": len(exact["b_dec"]), "architecture": config.architecture()}))
    assert set(state) == set(exact)
    sae.load_state_dict(exact)
    return sae


if __name__ == "__main__":
    main(write, [*CASES, *OTHERS], read)
