"""Where the time of a step goes, and the memory that it takes."""

import multiprocessing
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.steps.ours import Step, Work, make, rows, timed
from sae_lightning.kernels import memory, ops

PARTS = {
    "encoder product": ("sae_lightning::encode",),
    "selection": ("sae_lightning::top_k", "sae_lightning::above", "sae_lightning::top_k_among"),
    "sort by latent": ("sae_lightning::by_latent",),
    "decode": ("sae_lightning::decode", "sae_lightning::sum_by_row"),
    "gradient of values": ("sae_lightning::products",),
    "gradients of weights": ("sae_lightning::sum_by_latent",),
    "dense products": ("aten::mm", "aten::addmm"),
    "Adam": ("aten::_fused_adam_",),
    "clipping": ("aten::_foreach_norm", "aten::_foreach_mul_"),
}


class Spent(TorchDispatchMode):
    """Seconds of wall clock in each operator that is called while this is on; what an operator calls counts as its own."""

    def __init__(self):
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds[func._schema.name] += time.perf_counter() - start
        return result


def parts(step: Step, batches: list[Tensor], steps: int) -> dict[str, float]:
    """Share of the wall clock of a step by what it was spent on; `constraint` is not an operator and is measured by the step."""
    step.constraint = 0.0
    chooser = ops.backend(step.sae.dictionary.W_dec)
    above = chooser.above

    def timed_above(*arguments: Any) -> Any:  # not an operator: a step that is not compiled asks it whether there are too many
        start = time.perf_counter()
        chosen = above(*arguments)
        spent.seconds["sae_lightning::above"] += time.perf_counter() - start
        return chosen

    with Spent() as spent, mock.patch.object(chooser, "above", timed_above):
        wall, _ = timed(lambda: [step(batches[i % len(batches)]) for i in range(steps)])
    shares = {part: sum(spent.seconds[name] for name in names) / wall for part, names in PARTS.items()}
    shares["projection, renormalisation"] = step.constraint / wall
    shares["everything else"] = 1 - sum(shares.values())
    return shares


def _peak(connection: Any, name: str, work: Work) -> None:
    """Peak of resident memory over what there was before the SAE and its batches, in bytes (in a process of its own)."""
    g = torch.Generator().manual_seed(0)
    small = Work(64, 256, 64, 4)
    warm = rows(small, g, F.normalize(torch.randn(256, small.d, generator=g), dim=1))
    make(name, small, warm, True)(warm)  # what is compiled and loaded at the first step is not counted
    x = rows(work, g, F.normalize(torch.randn(work.latents, work.d, generator=g), dim=1))
    torch.mm(x, torch.randn(work.d, work.latents))  # neither is what the library of matrix products keeps for itself
    before = _resident("VmRSS")
    step = make(name, work, x[: min(len(x), 1024)], True)
    memory.give_back()
    for _ in range(20):
        step(x)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here: calibration has one of its own
    for _ in range(4):
        step(x)
    connection.send(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak(name: str, work: Work) -> float:
    """Peak memory of a step in units of parameters + gradients + optimizer state + one [batch, F] matrix."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_peak, args=(there, name, work))
    process.start()
    found = here.recv()
    process.join()
    return found / 4 / (4 * 2 * work.latents * work.d + work.batch * work.latents)
