"""EleutherAI's sparsify (MIT): its `Trainer`, which trains on what a transformer's hook point gives; here that is our rows.

Its `fit` runs the whole loop, so it lives in a thread of its own and waits, in the transformer's place, for the next batch.
"""
# pyright: reportMissingImports=false

import importlib.metadata
import os
import queue
import tempfile
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.worker import LONG, Job, Weight

os.environ.setdefault("WANDB_MODE", "disabled")

from sparsify import SparseCoderConfig, TrainConfig, Trainer

VERSION = importlib.metadata.version("eai-sparsify")


class Rows(nn.Module):
    """A transformer for its trainer: whatever goes in, the next batch of rows comes out of its one module."""

    def __init__(self, d: int):
        super().__init__()
        self.point, self.d = nn.Identity(), d
        self.asked, self.given = queue.Queue(), queue.Queue()
        self.config = SimpleNamespace(num_hidden_layers=1)

    @property
    def base_model(self) -> "Rows":
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.shape == (1, 1):  # its question for the width
            return self.point(torch.zeros(1, 1, self.d))
        self.asked.put(None)
        return self.point(self.given.get()[None])


class Training:
    scale = 1.0

    def __init__(self, job: Job):
        self.job, self.model, self.thread = job, Rows(job.d), None
        sae = SparseCoderConfig(num_latents=job.latents, k=job.k)
        words = {"lr": job.lr, "optimizer": "adam", "lr_warmup_steps": job.warmup_steps, "auxk_alpha": job.auxk, "init_seeds": [job.seed]}
        config = TrainConfig(sae, batch_size=1, hookpoints=["point"], log_to_wandb=False, save_every=1 << 40,
                             save_dir=tempfile.mkdtemp(), **words | job.options)  # fmt: skip
        # One "text" a step; its tokens only say how many rows there are.
        steps = [{"input_ids": torch.zeros(job.batch, dtype=torch.long)}] * job.steps
        self.trainer = Trainer(config, steps, self.model)
        self.sae = self.trainer.saes["point"]

    def step(self, x: Tensor) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self.trainer.fit, daemon=True)
            self.thread.start()
            self.model.asked.get()
        self.model.given.put(x)
        if self.trainer.global_step < self.job.steps - 1:
            self.model.asked.get()  # it asks for the next batch when it is done with this one
        else:
            self.thread.join()

    def losses(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        found = self.sae(x, dead_mask=self.trainer.num_tokens_since_fired["point"] > self.trainer.cfg.dead_feature_threshold)
        return {"fvu": found.fvu, "auxk": found.auxk_loss}, found.fvu + self.trainer.cfg.auxk_alpha * found.auxk_loss

    def weights(self) -> dict[str, Weight]:
        names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
        return {names[name]: Weight(parameter) for name, parameter in self.sae.named_parameters()}

    def kill(self, dead: Tensor) -> None:
        self.trainer.num_tokens_since_fired["point"][dead] = LONG

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self.sae.set_decoder_norm_to_unit_norm()  # as it does before every use
        return {name: weight.get(weight.parameter) for name, weight in self.weights().items()}, {"subtract": True, "k": self.job.k}


ARCHITECTURES: dict[str, Callable[[Job], Any]] = {"topk": Training}
