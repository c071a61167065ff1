"""What a training step costs, in units of the dense floor: five bare products of the problem's size and one fused Adam step.

    python benchmarks/train_step.py                    # works A and B, every part: minutes
    python benchmarks/train_step.py --works A --steps 15
    python benchmarks/train_step.py --first 2000       # also from initialisation, where relu is still dense
    python benchmarks/train_step.py --plain            # without numba

A: d 512, 4096 latents, 2048 rows, k 32.   B: d 768, 12288 latents, 4096 rows, k 32.
A step is `sae.step`, backward, projection, clipping, Adam, renormalisation and the counters. Floor and steps alternate in one process;
figures are ratios of medians, of wall clock and of CPU time over all threads. On a busy machine believe the latter.
"""

import argparse
import functools
import multiprocessing
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lightning.data.batch import Shape
from sae_lightning.kernels import ops
from sae_lightning.models.auxk import AuxK
from sae_lightning.models.base import SAE
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.lagrangian import Lagrangian, upper_quantile
from sae_lightning.models.relu import ReLU
from sae_lightning.models.topk import TopK


class Work(NamedTuple):
    d: int
    latents: int
    batch: int
    k: int = 32


WORKS = {"A": Work(512, 4096, 2048), "B": Work(768, 12288, 4096)}
DEAD = 0.1
"""Share of latents that are dead where AuxK is measured."""
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
    """An SAE as it starts or, `settled`, with the sparsity of its later training: L0 = k."""
    torch.manual_seed(0)
    dictionary = functools.partial(Dictionary, Shape((work.d,), (work.d,)), d_sae=work.latents)
    makers: dict[str, Callable[[], SAE]] = {
        "topk": lambda: TopK(dictionary, work.k, AuxK()),
        "topk, AuxK active": lambda: TopK(dictionary, work.k, AuxK()),
        "lagrangian": lambda: Lagrangian(dictionary, float(work.k), revival=AuxK()),
        "relu": lambda: ReLU(dictionary, 0.1),
    }
    sae = makers[name]()
    sae.dictionary.initialise_(x)
    sae.begin_(100_000)
    sae.calibrate_(x)
    if settled and name == "relu":
        with torch.no_grad():
            h = sae.dictionary.encode(x).h
            for block in torch.arange(work.latents).split(512):
                sae.dictionary.b_enc[block] = -upper_quantile(h[:, block], work.k / work.latents)
    if name == "topk, AuxK active":
        with torch.no_grad():
            dead = torch.arange(work.latents) % round(1 / DEAD) == 0
            sae.dictionary.W_enc[dead] *= 0.1
            sae.dictionary.rows_since_fired[dead] = 1 << 40
    return Step(sae, lr=1e-5 if settled else 1e-3)


def alternate(sides: dict[str, Callable[[Tensor], None]], batches: list[Tensor], steps: int, warm: int = 3) -> dict[str, list[tuple]]:
    """(wall, CPU) of every step but the first ones, the sides taking turns."""
    times: dict[str, list[tuple]] = {name: [] for name in sides}
    for i in range(warm + steps):
        for name, side in sides.items():
            found = timed(functools.partial(side, batches[i % len(batches)]))
            if i >= warm:
                times[name].append(found)
    return times


def median(times: list[tuple], clock: int) -> float:
    return statistics.median(found[clock] for found in times)


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


def measure(label: str, work: Work, names: list[str], steps: int, settled: bool = True) -> list[dict[str, Any]]:
    """A row of figures for each architecture, and the floor's."""
    g = torch.Generator().manual_seed(1)
    directions = F.normalize(torch.randn(work.latents, work.d, generator=g), dim=1)
    batches = [rows(work, g, directions) for _ in range(3)]
    floor = Floor(work)
    sae_steps = {name: make(name, work, batches[0], settled) for name in names}
    times = alternate({"floor": floor, **sae_steps}, batches, steps)
    wall, cpu = (median(times["floor"], clock) for clock in (0, 1))
    print(
        f"\n{label}: floor {1e3 * wall:.0f} ms ({1e3 * cpu:.0f} ms CPU), {floor.flops / wall / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads"
    )
    found = []
    for name, step in sae_steps.items():
        one = {"work": label, "name": name, "wall": median(times[name], 0) / wall, "cpu": median(times[name], 1) / cpu, "l0": step.l0,
               "ms": 1e3 * median(times[name], 0)}  # fmt: skip
        one["density"] = one["l0"] / work.latents
        print(
            "  {name:20s} {wall:5.2f} of the floor (CPU time {cpu:4.2f})   {ms:7.1f} ms   L0 {l0:7.1f} ({density:.2%})".format(**one),
            flush=True,
        )
        if settled:
            one |= {"parts": parts(step, batches, 5)}
            print("    " + ", ".join(f"{part} {share:.0%}" for part, share in one["parts"].items() if share >= 0.01))
        found.append(one)
    return found


def first(label: str, work: Work, name: str, steps: int) -> None:
    """The first steps from initialisation, every step on rows of its own, the floor beside every tenth."""
    g = torch.Generator().manual_seed(2)
    directions = F.normalize(torch.randn(work.latents, work.d, generator=g), dim=1)
    step, floor = make(name, work, rows(work, g, directions), False), Floor(work)
    taken, floors, l0 = [], [], []
    for i in range(steps):
        x = rows(work, g, directions)
        if i % 10 == 0:
            floors.append(timed(functools.partial(floor, x)))
        taken.append(timed(functools.partial(step, x)))
        l0.append(step.l0 / work.latents)
    ratios = [statistics.median(t[c] for t in taken) / median(floors, c) for c in (0, 1)]
    means = [statistics.mean(t[c] for t in taken) / statistics.mean(t[c] for t in floors) for c in (0, 1)]
    print(f"{label} {name:12s} first {steps} steps: median {ratios[0]:.2f} (CPU {ratios[1]:.2f}), mean {means[0]:.2f} (CPU {means[1]:.2f}); "
          f"density {l0[0]:.1%} at the start, {statistics.median(l0):.2%} in the middle, {l0[-1]:.2%} at the end", flush=True)  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    arguments.add_argument("--models", nargs="+", default=["topk", "lagrangian", "relu", "topk, AuxK active"])
    arguments.add_argument("--steps", type=int, default=11)
    arguments.add_argument("--first", type=int, default=0, help="also this many steps from initialisation")
    arguments.add_argument("--scaling", action=argparse.BooleanOptionalAction, default=True, help="also F 4096 against 32768")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--plain", action="store_true", help="without numba, as where the extra `fast` is not installed")
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.plain:
        ops.fast = lambda: None  # type: ignore[assignment]
    print(f"torch {torch.__version__}, {'numba' if ops.fast() else 'plain PyTorch'}, Python {sys.version.split()[0]}")
    for label in chosen.works:
        measure(label, WORKS[label], chosen.models, chosen.steps)
        for name in chosen.models:
            print(
                f"  {name:20s} peak memory {peak(name, WORKS[label]):.2f} of parameters, gradients, Adam's state and one [batch, F] matrix",
                flush=True,
            )
        for name in (m for m in chosen.models if chosen.first and m != "topk, AuxK active"):
            first(label, WORKS[label], name, chosen.first)
    if not chosen.scaling:
        return
    small, large = (measure(f"F {n}", Work(512, n, 2048), ["topk", "lagrangian"], 5) for n in (4096, 32768))
    for a, b in zip(small, large, strict=True):
        print(f"{a['name']}: F 4096 → 32768, a latent costs {b['ms'] / a['ms'] / 8:.2f} × as much, ratio {a['wall']:.2f} → {b['wall']:.2f}")


if __name__ == "__main__":
    main()
