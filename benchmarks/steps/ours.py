"""What is timed: the works, their rows, the dense floor, and a whole training step of an SAE as SAEModule makes it."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor

from sae_lightning.data.batch import Shape
from sae_lightning.models.base import SAE
from sae_lightning.models.calibration import upper_quantile
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.prefixes import GROUPS, group_ends
from sae_lightning.run.check import OF_BUILD
from sae_lightning.run.composer import Composer


class Work(NamedTuple):
    d: int
    latents: int
    batch: int
    k: int = 32


WORKS = {"A": Work(512, 4096, 2048), "B": Work(768, 12288, 4096)}
AUXK, DEAD_EVERY = ", AuxK active", 10
"""What is appended to the name of an architecture some of whose latents are dead; every so many are."""
CONF = Path(__file__).parents[2] / "conf"


def trained() -> list[str]:
    """The architectures in conf/model that take steps."""
    return [path.stem for path in sorted((CONF / "model").glob("*.yaml")) if ".null." not in path.read_text()]


def group_sizes(latents: int) -> list[int]:
    """Of matryoshka's groups, as ours cut them by default."""
    ends = [0, *group_ends(latents, GROUPS)]
    return [b - a for a, b in itertools.pairwise(ends)]


def rows(work: Work, generator: torch.Generator, directions: Tensor) -> Tensor:
    """Sums of 24 known directions, so that pre-activations look like those of real activations; E‖x‖² = 1."""
    active = torch.randint(0, len(directions), (work.batch, 24), generator=generator)
    x = F.embedding_bag(active, directions, per_sample_weights=torch.rand(work.batch, 24, generator=generator), mode="sum")
    return x / x.square().sum(1).mean().sqrt()


class Floor:
    """The dense floor, every output allocated before."""

    def __init__(self, work: Work):
        self.W = [torch.nn.Parameter(F.normalize(torch.randn(work.latents, work.d), dim=1)) for _ in range(2)]
        for W in self.W:
            W.grad = torch.zeros_like(W)
        self.adam = torch.optim.Adam(self.W, lr=1e-5, fused=True)
        self.h, self.f = torch.empty(work.batch, work.latents), torch.rand(work.batch, work.latents)
        self.out = torch.empty(work.batch, work.d)
        self.flops = 10 * work.batch * work.latents * work.d

    @torch.no_grad()
    def __call__(self, x: Tensor) -> None:
        W_enc, W_dec = (W.detach() for W in self.W)
        torch.mm(x, W_enc.T, out=self.h)
        torch.mm(self.f, W_dec, out=self.out)
        torch.mm(self.f.T, self.out, out=self.W[1].grad)
        torch.mm(self.out, W_dec.T, out=self.h)
        torch.mm(self.h.T, x, out=self.W[0].grad)
        self.adam.step()


class Step:
    """A whole training step of an SAE as SAEModule makes it."""

    def __init__(self, sae: SAE, lr: float):
        self.sae = sae
        self.adam = torch.optim.Adam(sae.parameters(), lr=lr, fused=True)
        self.constraint, self.l0 = 0.0, 0.0

    def __call__(self, x: Tensor) -> None:
        step = self.sae.step(x, x)
        with torch.no_grad():
            sums = {"rows": torch.tensor(len(x)), "fires": step.latents.fires(), **step.sums}
        self.l0 = float(sums["fires"].sum()) / len(x)
        step.loss.backward()
        del step
        dictionary = self.sae.dictionary
        self.constraint += timed(dictionary.before_step_)[0]
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.adam.step()
        self.adam.zero_grad()
        self.constraint += timed(lambda: dictionary.after_step_(sums["fires"], sums["rows"]))[0]
        self.sae.after_step_(sums)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall clock and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def make(name: str, work: Work, x: Tensor, settled: bool) -> Step:
    """The SAE of conf/model/<name>.yaml as it starts or, `settled`, with the sparsity of its later training: L0 = k."""
    torch.manual_seed(0)
    model, active = name.removesuffix(AUXK), name.endswith(AUXK)
    settings = {
        key: value for key, value in Composer(CONF, "train").compose([f"model={model}"]).model.items() if f"model.{key}" not in OF_BUILD
    }
    settings |= dict.fromkeys({"k", "target_l0"} & set(settings), work.k)
    sae: SAE = instantiate(settings)(functools.partial(Dictionary, Shape((work.d,), (work.d,)), d_sae=work.latents))
    sae.dictionary.initialise_(x)
    sae.begin_(100_000)
    sae.calibrate_(x)
    if settled and settings.get("sparsity") is not None:
        settle_(sae, x, work.k / work.latents)
    if active:
        with torch.no_grad():
            dead = torch.arange(work.latents) % DEAD_EVERY == 0
            sae.dictionary.W_enc[dead] *= 0.1
            sae.dictionary.rows_since_fired[dead] = 1 << 40
    return Step(sae, lr=1e-5 if settled else 1e-3)


@torch.no_grad()
def settle_(sae: SAE, x: Tensor, share: float) -> None:
    """Encoder biases at which each latent is active in this share of the rows."""
    h, b_enc = sae.dictionary.encode(x).h, sae.dictionary.b_enc
    for block in torch.arange(len(b_enc)).split(512):
        b_enc[block] -= upper_quantile(h[:, block], share)


Side = Callable[[int], tuple[float, float]]
"""Takes step number i; seconds of wall clock and of CPU time, measured in the process where it is taken."""


def here(step: Callable[[Tensor], None], batches: list[Tensor]) -> Side:
    return lambda i: timed(functools.partial(step, batches[i % len(batches)]))


def alternate(sides: dict[str, Side], steps: int, warm: int = 3) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) of every step but the first ones, the sides taking turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for i in range(warm + steps):
        for name, side in sides.items():
            found = side(i)
            if i >= warm:
                times[name].append(found)
    return times


def median(times: list[tuple], clock: int) -> float:
    return statistics.median(found[clock] for found in times)
