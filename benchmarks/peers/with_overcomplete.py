"""overcomplete (KempnerInstitute/overcomplete, MIT): its SAEs under its `train_sae`, which runs over batches as they come."""
# pyright: reportMissingImports=false

import importlib.metadata
import importlib.util
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.worker import Job, Weight

# The package's face imports vision models, and with them torchvision and timm; the SAEs need neither.
_found = importlib.util.find_spec("overcomplete")
assert _found is not None
_package = ModuleType("overcomplete")
_package.__path__ = list(_found.submodule_search_locations or [])
sys.modules["overcomplete"] = _package

from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, TopKSAE, mse_l1, train_sae  # noqa: E402
from overcomplete.sae.losses import top_k_auxiliary_loss  # noqa: E402

VERSION = importlib.metadata.version("overcomplete")


class Training:
    """`train_sae` lives in a thread of its own, whose loader waits for the next batch."""

    def __init__(self, sae: Any, criterion: Callable[..., Tensor], job: Job):
        self.sae, self.criterion, self.job, self.thread = sae, criterion, job, None
        self.scale = job.d**0.5  # "standardize the input data": variance 1 per entry
        self.asked, self.given = queue.Queue(), queue.Queue()
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=job.lr)
        rise, fall = max(job.warmup_steps, 1), max(job.decay_steps, 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda i: min((i + 1) / rise, 1.0, max((job.steps - i) / fall, 0.0) if job.decay_steps else 1.0)
        )

    def _batches(self) -> Iterator[Tensor]:
        while True:
            self.asked.put(None)
            yield self.given.get()

    def step(self, x: Tensor) -> None:
        if self.thread is None:
            words = {"scheduler": self.schedule, "nb_epochs": 1, "monitoring": 0}
            arguments = (self.sae, self._batches(), self.criterion, self.optimizer)
            self.thread = threading.Thread(target=train_sae, args=arguments, kwargs=words, daemon=True)
            self.thread.start()
            self.asked.get()
        self.given.put(x)
        self.asked.get()  # it asks for the next batch when it is done with this one

    def losses(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        before, f, x_hat = self.sae.train()(x)
        loss = self.criterion(x, x_hat, before, f, self.sae.get_dictionary())
        return {"mse": (x - x_hat).square().mean()}, loss

    def weights(self) -> dict[str, Weight]:
        encoder = self.sae.encoder.final_block[0]
        found = {"W_enc": Weight(encoder.weight), "b_enc": Weight(encoder.bias), "W_dec": Weight(self.sae.dictionary._weights)}
        return found | ({"log_threshold": Weight(self.sae.thresholds)} if hasattr(self.sae, "thresholds") else {})

    def kill(self, dead: Tensor) -> None:
        raise NotImplementedError("it keeps no counters of silence")

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        w = {name: weight.get(weight.parameter) for name, weight in self.weights().items()}
        w |= {"W_dec": self.sae.train().get_dictionary().detach(), "b_dec": torch.zeros(self.job.d)}
        if self.job.architecture.startswith("topk"):
            return w, {"subtract": False, "k": self.job.k}
        tau = getattr(self.sae, "running_threshold", None)
        log_threshold = w.pop("log_threshold", None)
        zero = torch.zeros(()) if tau is None else tau
        w["threshold"] = zero.expand(self.job.latents) if log_threshold is None else log_threshold.exp()
        return w, {"subtract": False, "k": None}


def _auxiliary(job: Job) -> Callable[..., Tensor]:
    return lambda *seen: top_k_auxiliary_loss(*seen, penalty=job.auxk)


def _l1(job: Job) -> Callable[..., Tensor]:
    return lambda *seen: mse_l1(*seen, penalty=job.sparsity)


ARCHITECTURES: dict[str, Callable[[Job], Training]] = {
    "topk": lambda job: Training(TopKSAE(job.d, job.latents, top_k=job.k), mse_l1_free, job),
    "topk, auxiliary": lambda job: Training(TopKSAE(job.d, job.latents, top_k=job.k), _auxiliary(job), job),
    "batch_topk": lambda job: Training(BatchTopKSAE(job.d, job.latents, top_k=job.k * job.batch), mse_l1_free, job),
    "relu": lambda job: Training(SAE(job.d, job.latents), _l1(job), job),
    "jumprelu": lambda job: Training(JumpSAE(job.d, job.latents, **job.options), _l1(job), job),
}


def mse_l1_free(x: Tensor, x_hat: Tensor, before: Tensor, f: Tensor, dictionary: Tensor) -> Tensor:
    """Its criterion without a penalty."""
    return mse_l1(x, x_hat, before, f, dictionary, penalty=0.0)
