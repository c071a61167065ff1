"""dictionary_learning's trainers (saprmarks/dictionary_learning, MIT): each has `update(step, x)` and `loss(x, step, logging)`."""
# pyright: reportMissingImports=false

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.worker import LONG, Job, Weight

# The package's face imports its activation buffer, and with it nnsight; the trainers need neither.
_found = importlib.util.find_spec("dictionary_learning")
assert _found is not None
_package = ModuleType("dictionary_learning")
_package.__path__ = list(_found.submodule_search_locations or [])
sys.modules["dictionary_learning"] = _package

from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # noqa: E402
from dictionary_learning.trainers.gdm import GatedSAETrainer  # noqa: E402
from dictionary_learning.trainers.jumprelu import JumpReluTrainer  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer  # noqa: E402
from dictionary_learning.trainers.p_anneal import PAnnealTrainer  # noqa: E402
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate  # noqa: E402
from dictionary_learning.trainers.top_k import TopKTrainer  # noqa: E402

VERSION = importlib.metadata.version("dictionary-learning")

NAMES = {
    "encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "bias": "b_dec", "b_dec": "b_dec", "W_enc": "W_enc",
    "b_enc": "b_enc", "W_dec": "W_dec", "threshold": "threshold", "decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag",
}  # fmt: skip


class Training:
    scale = 1.0

    def __init__(self, trainer: Any, job: Job):
        self.trainer, self.job, self.steps = trainer, job, 0

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.steps, x)
        self.steps += 1

    def losses(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        counters = getattr(self.trainer, "num_tokens_since_fired", None)
        before = None if counters is None else counters.clone()
        step = self.job.steps - 1  # behind every warm-up
        seen = self.trainer.loss(x, step=step, logging=True)
        terms = getattr(seen, "losses", None) or seen[3]
        if before is not None:
            self.trainer.num_tokens_since_fired = before
        loss = self.trainer.loss(x, step=step)
        found = {key: torch.tensor(float(value)) for key, value in terms.items() if value is not None}
        buffers = dict(self.trainer.ae.named_buffers())
        return (found | {"tau": buffers["threshold"]} if "threshold" in buffers else found), loss

    def weights(self) -> dict[str, Weight]:
        found = {NAMES[name]: parameter for name, parameter in self.trainer.ae.named_parameters()}
        latents = self.job.latents
        return {name: Weight(p, p.ndim == 2 and p.shape[0] != latents) for name, p in found.items()}

    def kill(self, dead: Tensor) -> None:
        self.trainer.num_tokens_since_fired[dead] = LONG

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        w = {name: weight.get(weight.parameter) for name, weight in self.weights().items()}
        if "b_gate" in w:  # ⟦π > 0⟧ relu(e^r (π − b_gate) + b_mag) = h ⟦h > θ⟧
            scale, b_gate, b_mag = w.pop("r_mag").exp(), w.pop("b_gate"), w.pop("b_mag")
            w |= {"W_enc": scale[:, None] * w["W_enc"], "b_enc": b_mag, "threshold": (b_mag - scale * b_gate).clamp(min=0)}
        if self.job.architecture == "topk":
            return w, {"subtract": True, "k": self.job.k}
        tau = dict(self.trainer.ae.named_buffers()).get("threshold", torch.zeros(()))
        threshold: Tensor = w["threshold"] if "threshold" in w else tau.expand(self.job.latents)
        w["threshold"] = threshold.clamp(min=0)  # what is below 0 acts like 0: a relu follows
        return w, {"subtract": self.job.architecture != "jumprelu", "k": None}


def _trainer(kind: type, **fixed: Any) -> Callable[[Job], Training]:
    """A maker: what every trainer takes, the words of its architecture, and those of the job's options."""

    def make(job: Job) -> Training:
        words = {
            "steps": job.steps, "activation_dim": job.d, "dict_size": job.latents, "layer": 0, "lm_name": "none", "device": "cpu", "lr": job.lr,
            "warmup_steps": job.warmup_steps, "decay_start": job.steps - job.decay_steps if job.decay_steps else None, "seed": job.seed,
        }  # fmt: skip
        words |= {key: value(job) if callable(value) else value for key, value in fixed.items()}
        return Training(kind(**words | job.options), job)

    return make


_k: dict[str, Any] = {
    "k": lambda job: job.k, "auxk_alpha": lambda job: job.auxk, "threshold_start_step": lambda job: job.steps // 3 if job.steps > 1 else 2,
}  # fmt: skip
_l1: dict[str, Any] = {"l1_penalty": lambda job: job.sparsity, "sparsity_warmup_steps": lambda job: job.warmup_steps}
_groups: dict[str, Any] = {"group_fractions": lambda job: [size / job.latents for size in job.groups]}

ARCHITECTURES: dict[str, Callable[[Job], Training]] = {
    "topk": _trainer(TopKTrainer, **_k),
    "batch_topk": _trainer(BatchTopKTrainer, **_k),
    "matryoshka": _trainer(MatryoshkaBatchTopKTrainer, **_k, **_groups),
    "relu": _trainer(StandardTrainerAprilUpdate, **_l1),
    "relu, unit norm": _trainer(StandardTrainer, **_l1),
    "gated": _trainer(GatedSAETrainer, **_l1),
    "jumprelu": _trainer(
        JumpReluTrainer, target_l0=lambda job: float(job.k), sparsity_penalty=lambda job: job.sparsity,
        sparsity_warmup_steps=lambda job: job.warmup_steps,
    ),
    "p_anneal": _trainer(
        PAnnealTrainer, initial_sparsity_penalty=lambda job: job.sparsity, sparsity_warmup_steps=lambda job: job.warmup_steps,
        anneal_start=lambda job: job.steps // 3, p_end=0.2,
    ),
}  # fmt: skip


def resampled(weights: str, rows: str, out: str, latents: int, d: int) -> dict[str, Any]:
    """What its resampling writes: rows of the encoder, columns of the decoder."""
    from safetensors.torch import load_file, save_file

    side = ARCHITECTURES["relu, unit norm"](Job("relu, unit norm", d, latents, 0, options={"resample_steps": 10, "decay_start": None}))
    given = load_file(weights)
    for key, weight in side.weights().items():
        weight.put(given[key])
    x = load_file(rows)["x"]
    for parameter in side.trainer.ae.parameters():  # so that the optimizer has the moments that it resets
        parameter.grad = torch.zeros_like(parameter)
    side.trainer.optimizer.step()
    torch.manual_seed(0)
    dead = given["dead"].bool()
    side.trainer.resample_neurons(dead.clone(), x)
    found = {key: weight.get(weight.parameter) for key, weight in side.weights().items()}
    save_file({"W_enc": found["W_enc"][dead], "W_dec": found["W_dec"][dead]}, out)
    return {}
