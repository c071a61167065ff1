"""dictionary_learning writes, and reads, the folders of its trainers."""
# pyright: reportMissingImports=false

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import with_dictionary_learning as peer
from tests.oracles.foreign.common import D, F, K, Outputs, disturb_, dtype_of, main

COMMON = {
    "steps": 10_000,
    "activation_dim": D,
    "dict_size": F,
    "layer": 3,
    "lm_name": "gpt2",
    "device": "cpu",
    "submodule_name": "transformer.h.3",
}
TRAINERS: dict[str, tuple[type, dict[str, Any]]] = {
    "standard": (peer.StandardTrainer, {}),
    "april_update": (peer.StandardTrainerAprilUpdate, {}),
    "p_anneal": (peer.PAnnealTrainer, {}),
    "topk": (peer.TopKTrainer, {"k": K}),
    "batch_topk": (peer.BatchTopKTrainer, {"k": K}),
    "matryoshka": (peer.MatryoshkaBatchTopKTrainer, {"k": K, "group_fractions": [0.25, 0.75]}),
    "gated": (peer.GatedSAETrainer, {}),
    "jumprelu": (peer.JumpReluTrainer, {}),
}
MODULES = [importlib.import_module(f"dictionary_learning.{name}") for name in
           ("dictionary", "trainers.top_k", "trainers.batch_top_k", "trainers.matryoshka_batch_top_k")]  # fmt: skip
CLASSES: dict[str, Any] = {name: kind for module in MODULES for name, kind in vars(module).items() if isinstance(kind, type)}
FACTOR = 2.9
OTHERS = ["batch_topk-unset", *(f"{name}-backup" for name in ("standard", "batch_topk", "gated", "jumprelu", "topk"))]


def write(folder: Path, case: str) -> None:
    name, _, state = case.removesuffix("-float64").partition("-")
    trainer_class, words = TRAINERS[name]
    trainer = trainer_class(**COMMON | words)
    ae = trainer.ae.to(dtype_of(case))
    disturb_(ae, len(case))
    if "threshold" in dict(ae.named_buffers()) and state != "unset":
        ae.get_buffer("threshold").fill_(0.7)
    config = {"trainer": {key: value for key, value in trainer.config.items() if not isinstance(value, Tensor)}, "buffer": {"ctx_len": 64}}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    if state == "backup":  # as its later versions leave it in the middle of a run
        backup = {
            "step": 7,
            "ae": ae.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "config": config["trainer"],
            "norm_factor": FACTOR,
        }
        torch.save(backup, folder / "ae.pt")
    else:
        torch.save(ae.state_dict(), folder / "ae.pt")


def read(folder: Path, case: str, x: Tensor) -> Outputs:
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    kind, held = CLASSES[trainer["dict_class"]], torch.load(folder / "ae.pt", weights_only=True)
    factor = held.get("norm_factor")
    if factor is None and x.dtype == torch.float32 and trainer["dict_class"] != "AutoEncoder":
        ae = kind.from_pretrained(str(folder / "ae.pt"))
    else:  # by hand: `from_pretrained` makes float32 of all, normalises decoders, and knows no backups
        ae = _empty(kind, trainer, held.get("ae", held)).to(x.dtype)
        ae.load_state_dict(held.get("ae", held))
        if factor is not None:
            ae.scale_biases(factor)
    return ae.encode(x), ae(x)


def _empty(kind: type, trainer: dict[str, Any], held: dict[str, Tensor]) -> Any:
    words: dict[str, Any] = {"k": trainer["k"]} if "k" in held else {}
    if "group_sizes" in held:
        words["group_sizes"] = held["group_sizes"].tolist()
    return kind(trainer["activation_dim"], trainer["dict_size"], **words)


if __name__ == "__main__":
    main(write, list(TRAINERS) + OTHERS, read)
