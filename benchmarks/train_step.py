"""What a training step costs, in units of the dense floor: five bare products of the problem's size and one fused Adam step.

    python -m benchmarks.train_step                    # works A and B, every part: minutes
    python -m benchmarks.train_step --works A --steps 15
    python -m benchmarks.train_step --first 2000       # also from initialisation, where relu is still dense
    python -m benchmarks.train_step --plain            # without numba
    make bench-peers                                   # beside other libraries' trainers; writes the table of README.md and LOG.md

A: d 512, 4096 latents, 2048 rows, k 32.   B: d 768, 12288 latents, 4096 rows, k 32.
A step is `sae.step`, backward, projection, clipping, Adam, renormalisation and the counters. Floor and steps alternate, other
libraries' in processes of their own; figures are ratios of medians, of wall clock and of CPU time over all threads. On a busy machine
believe the latter.
"""

import argparse
import sys
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.peers.client import LIBRARIES
from benchmarks.steps import table
from benchmarks.steps.first import FIRST, first
from benchmarks.steps.ours import AUXK, WORKS, Floor, Work, alternate, here, make, median, rows, trained
from benchmarks.steps.peers import Peers
from benchmarks.steps.shares import parts, peak
from sae_lightning.kernels import ops


def measure(label: str, work: Work, names: list[str], steps: int, peers: Peers | None = None) -> list[dict[str, Any]]:
    """A row of figures for each architecture and each of its sides: ours and those of other libraries, where they have it."""
    g = torch.Generator().manual_seed(1)
    directions = F.normalize(torch.randn(work.latents, work.d, generator=g), dim=1)
    batches = [rows(work, g, directions) for _ in range(3)]
    floor = Floor(work)
    if peers is not None:
        peers.give(batches)
    found = []
    for name in names:
        step = make(name, work, batches[0], True)
        others = peers.sides(name, work) if peers is not None else {}
        times = alternate({"floor": here(floor, batches), "ours": here(step, batches), **others}, steps)
        taken = times.pop("floor")
        wall, cpu = median(taken, 0), median(taken, 1)
        print(
            f"{label}: floor {1e3 * wall:.0f} ms ({1e3 * cpu:.0f} ms CPU), {floor.flops / wall / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads"
        )
        for side, taken in times.items():
            one = {
                "work": label,
                "name": name,
                "side": side,
                "wall": median(taken, 0) / wall,
                "cpu": median(taken, 1) / cpu,
                "ms": 1e3 * median(taken, 0),
            }
            print("  {name:20s} {side:20s} {wall:5.2f} of the floor (CPU time {cpu:4.2f})   {ms:7.1f} ms".format(**one), flush=True)
            found.append(one)
        shares = parts(step, batches, 5)
        print(
            f"    L0 {step.l0:.1f} ({step.l0 / work.latents:.2%}); "
            + ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.01)
        )
        if peers is not None:
            peers.forget()
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    arguments.add_argument("--models", nargs="+", default=sorted({*trained(), f"topk{AUXK}"}), help="of conf/model; all of them")
    arguments.add_argument("--steps", type=int, default=11)
    arguments.add_argument(
        "--first", type=int, default=0, help=f"also so many of the first {FIRST} steps from initialisation; goes on where it stood"
    )
    arguments.add_argument("--scaling", action=argparse.BooleanOptionalAction, default=True, help="also F 4096 against 32768")
    arguments.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="also the peak of memory")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--plain", action="store_true", help="without numba, as where the extra `fast` is not installed")
    arguments.add_argument("--peers", action="store_true", help="other libraries beside ours: needs `make peers`")
    arguments.add_argument("--write", action="store_true", help="keep the figures, and put their table into README.md and LOG.md")
    arguments.add_argument("--update", action="store_true", help="measure nothing: only put the table of the kept figures there again")
    chosen = arguments.parse_args()
    if chosen.update:
        return table.update()
    torch.set_num_threads(chosen.threads)
    if chosen.plain:
        ops.fast = lambda: None  # type: ignore[assignment]
    print(f"torch {torch.__version__}, {'numba' if ops.fast() else 'plain PyTorch'}, Python {sys.version.split()[0]}")
    with Peers(LIBRARIES if chosen.peers else (), chosen.threads) as peers:
        found = [row for label in chosen.works for row in measure(label, WORKS[label], chosen.models, chosen.steps, peers)]
        versions = peers.versions()
    found += [row for label in chosen.works for name in chosen.models for row in alone(label, name, chosen)]
    if chosen.write:
        table.keep(found, versions, chosen.threads, chosen.steps)
        table.update()
    if chosen.scaling:
        scaling()


def alone(label: str, name: str, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """What is measured for our own side only: memory and the first steps."""
    key = {"work": label, "name": name, "side": "ours"}
    found: list[dict[str, Any]] = []
    if chosen.memory:
        units = peak(name, WORKS[label])
        print(f"{label} {name:20s} peak memory {units:.2f} of parameters, gradients, Adam's state and one [batch, F] matrix", flush=True)
        found.append(key | {"memory": units})
    if chosen.first and not name.endswith(AUXK):
        found.append(key | first(label, WORKS[label], name, chosen.first))
    return found


def scaling() -> None:
    """What a latent costs in a small dictionary and in a large one."""
    small, large = (measure(f"F {n}", Work(512, n, 2048), ["topk", "lagrangian"], 5) for n in (4096, 32768))
    for a, b in zip(small, large, strict=True):
        print(f"{a['name']}: F 4096 → 32768, a latent costs {b['ms'] / a['ms'] / 8:.2f} × as much, ratio {a['wall']:.2f} → {b['wall']:.2f}")


if __name__ == "__main__":
    main()
