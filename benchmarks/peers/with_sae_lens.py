"""SAELens (decoderesearch/SAELens, MIT): its training SAEs under its `SAETrainer`."""
# pyright: reportMissingImports=false

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.worker import LONG, Job, Weight

os.environ.setdefault("WANDB_MODE", "disabled")

import sae_lens
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

VERSION = sae_lens.__version__


def _nothing() -> Iterator[Tensor]:
    yield from ()


class Training:
    def __init__(self, sae: Any, job: Job):
        self.sae, self.job = sae, job
        # Rows of E‖x‖² = d, which is what its `expected_average_only_in` makes of any rows; its penalties are meant for them.
        self.scale = job.d**0.5
        words = {
            "total_training_samples": job.steps * job.batch, "train_batch_size_samples": job.batch, "lr": job.lr, "lr_end": job.lr,
            "lr_warm_up_steps": job.warmup_steps, "lr_decay_steps": job.decay_steps,
        }  # fmt: skip
        self.trainer = SAETrainer(SAETrainerConfig(**words), sae, data_provider=_nothing())

    def step(self, x: Tensor) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def losses(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        coefficients = {name: scheduler.final_value for name, scheduler in self.trainer.coefficient_schedulers.items()}
        given = TrainStepInput(sae_in=x, coefficients=coefficients, dead_neuron_mask=self.trainer.dead_neurons,
                               n_training_steps=0, is_logging_step=False)  # fmt: skip
        found = self.sae.train().training_forward_pass(given)
        return dict(found.losses) | {key: value for key, value in found.metrics.items() if key == "topk_threshold"}, found.loss

    def weights(self) -> dict[str, Weight]:
        return {name: Weight(parameter, name == "W_enc") for name, parameter in self.sae.named_parameters()}

    def kill(self, dead: Tensor) -> None:
        self.trainer.n_forward_passes_since_fired[dead] = LONG

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        w = {name: weight.get(weight.parameter) for name, weight in self.weights().items()}
        if getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False):  # it selects by h‖W_dec‖ and decodes with W_dec/‖W_dec‖
            norms = w["W_dec"].norm(dim=1)
            w |= {"W_enc": w["W_enc"] * norms[:, None], "b_enc": w["b_enc"] * norms, "W_dec": w["W_dec"] / norms[:, None]}
        if "b_gate" in w:  # ⟦π > 0⟧ relu(W_enc e^r x + b_mag) = h ⟦h > θ⟧
            scale, b_gate, b_mag = w.pop("r_mag").exp(), w.pop("b_gate"), w.pop("b_mag")
            w |= {"W_enc": scale[:, None] * w["W_enc"], "b_enc": b_mag, "threshold": (b_mag - scale * b_gate).clamp(min=0)}
        about = {"subtract": self.sae.cfg.apply_b_dec_to_input, "k": None}
        if self.job.architecture.startswith("topk"):
            return w, about | {"k": self.job.k}
        tau = getattr(self.sae, "topk_threshold", torch.zeros(()))
        w["threshold"] = w.get("threshold", tau.float().expand(self.job.latents)).clamp(min=0)  # as it clamps its own before a step
        return w, about


def _sae(kind: type, config: type, **fixed: Any) -> Callable[[Job], Training]:
    def make(job: Job) -> Training:
        words = {key: value(job) if callable(value) else value for key, value in fixed.items()}
        return Training(kind(config(d_in=job.d, d_sae=job.latents, **words | job.options)), job)

    return make


_k: dict[str, Any] = {"k": lambda job: job.k}
_l0: dict[str, Any] = {"l0_coefficient": lambda job: job.sparsity, "l0_warm_up_steps": lambda job: job.warmup_steps}
_l1: dict[str, Any] = {"l1_coefficient": lambda job: job.sparsity, "l1_warm_up_steps": lambda job: job.warmup_steps}

ARCHITECTURES: dict[str, Callable[[Job], Training]] = {
    "topk": _sae(TopKTrainingSAE, TopKTrainingSAEConfig, **_k),
    # Its sparse tensors do not survive its rescaling by decoder norms on a CPU (torch 2.13: no `view`).
    "topk, sparse": _sae(TopKTrainingSAE, TopKTrainingSAEConfig, **_k, use_sparse_activations=True, rescale_acts_by_decoder_norm=False),
    "batch_topk": _sae(BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, **_k),
    "matryoshka": _sae(
        MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig, **_k,
        matryoshka_widths=lambda job: torch.tensor(job.groups).cumsum(0).tolist(),
    ),
    "relu": _sae(StandardTrainingSAE, StandardTrainingSAEConfig, **_l1),
    "gated": _sae(GatedTrainingSAE, GatedTrainingSAEConfig, **_l1),
    "jumprelu": _sae(JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, **_l0),
}  # fmt: skip


def cached(folder: str, out: str, context: int, d: int, sequences: int) -> dict[str, Any]:
    """What its CacheActivationsRunner writes of a small random transformer, into `folder`; what its ActivationsStore reads there, into `out`."""
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, cache_activations_runner
    from sae_lens.training.activations_store import ActivationsStore
    from safetensors.torch import save_file

    lens: Any = importlib.import_module("transformer_lens")
    torch.manual_seed(0)
    size = {"n_layers": 1, "d_model": d, "n_ctx": context, "d_head": d, "n_heads": 1, "d_vocab": 32}
    model = lens.HookedTransformer(lens.HookedTransformerConfig(**size, act_fn="relu", device="cpu"))
    cache_activations_runner.load_model = lambda **_: model  # there is none by that name
    hook, batch = "blocks.0.hook_resid_post", 4
    runner = CacheActivationsRunnerConfig(
        dataset_path="random", model_name="random", model_batch_size=batch, hook_name=hook, d_in=d, training_tokens=sequences * context,
        context_size=context, new_cached_activations_path=folder, dtype="float16", device="cpu", prepend_bos=False, streaming=False,
        shuffle=False, buffer_size_gb=2.5 * batch * context * d * 2 / 1e9,  # two batches to a file
    )  # fmt: skip
    text = Dataset.from_dict({"input_ids": torch.randint(32, (sequences, context)).tolist()})
    CacheActivationsRunner(runner, override_dataset=text).run()
    read = ActivationsStore(
        model=model, dataset=None, streaming=False, hook_name=hook, hook_head_index=None, context_size=context, d_in=d, n_batches_in_buffer=1,
        total_training_tokens=sequences * context, store_batch_size_prompts=sequences, train_batch_size_tokens=1, prepend_bos=False,
        normalize_activations="none", device=torch.device("cpu"), dtype="float16", cached_activations_path=folder,
    )  # fmt: skip
    rows, token_ids = read.get_raw_llm_batch()
    save_file({"rows": rows, "token_ids": token_ids.view(sequences, context).int()}, out)
    return {}
