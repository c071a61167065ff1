"""What several processes make of one training: strategy=ddp divides the rows of a batch, strategy=shard_latents the latents.

    python -m benchmarks.scale                                   # topk at size A, 1, 2 and 4 processes: a minute or two
    python -m benchmarks.scale --model lagrangian --work B --processes 2
    python -m benchmarks.scale --size 2304 65536 4096 64 --processes --steps 1 --rounds 3    # Gemma-2-2B's, one process

A: d 512, 4096 latents, 2048 rows, k 32.   B: d 768, 12288 latents, 4096 rows, k 32.
A step is `sae.step`, backward, projection, clipping, Adam, renormalisation and the counters, of the same global batch whatever the
number of processes; reading rows is left out. Every group of processes is there from the beginning, and they take turns: a few steps of
one process, then as many of the first group, … Rows/s are those of the group over those of one process in the same round, medians
over rounds. In collectives: the part of a step in which one is under way, waiting for the slowest process included; those of ddp run
beside its backward. Gloo on a CPU, whose cores the processes share: one process has all of them as threads, each of a group its part,
at least one; a group larger than the machine has cores is marked, and says nothing about machines that have more.

By the formula: benchmarks.costs, with the rates of four plain operations that every process of the group takes before, all at the same
time, and the time that a step took over what the formula says.
"""

import argparse
import math
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import costs
from benchmarks.steps.ours import WORKS, Work, make, rows, trained
from sae_lightning import ranks
from sae_lightning.models.base import SAE, Step
from sae_lightning.models.parts import clip_norm_, cut_

ALONE = "one process"
BATCHES = 3
CORES = len(os.sched_getaffinity(0))


class Side(NamedTuple):
    strategy: str
    processes: int

    @property
    def threads(self) -> int:
        return max(1, CORES // self.processes)


class Turn(NamedTuple):
    """What one process says of its steps; `mb`: of its weights, gradients and moments."""

    seconds: float
    in_collectives: float
    mb: float


def rates(side: Side, work: Work, repeats: int = 5) -> costs.Rates:
    """What plain operations of the step's sizes reach here, the other processes of the group doing the same."""
    training = costs.Training(work.d, work.latents, work.k, work.batch, side.processes, side.strategy)
    b, f = int(training.rows), int(training.here)
    x, W, h = torch.randn(b, work.d), torch.randn(f, work.d), torch.empty(b, f)
    latents = torch.randint(0, f, (b, max(1, work.k * f // work.latents)))
    weights = [torch.nn.Parameter(torch.randn(f, work.d)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    adam = torch.optim.Adam(weights, fused=True)

    def seconds(call: Callable[[], Any]) -> float:
        taken = []
        for _ in range(repeats + 1):
            if side.processes > 1:
                dist.barrier()
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken[1:])

    link, latency = math.inf, 0.0
    if side.processes > 1:
        sent, one = torch.ones(b * work.d if training.is_divided else 2 * f * work.d), torch.ones(1)
        latency = seconds(lambda: dist.all_reduce(one))
        link = 8 * (side.processes - 1) / side.processes * len(sent) / seconds(lambda: dist.all_reduce(sent))
    return costs.Rates(
        products=2 * b * f * work.d / seconds(lambda: torch.mm(x, W.T, out=h)),
        memory=7 * 4 * 2 * f * work.d / seconds(adam.step),
        gathered=4 * latents.numel() * work.d / seconds(lambda: F.embedding_bag(latents, W, mode="sum")),
        link=link,
        latency=latency,
    )


class Clock:
    """When collectives were under way."""

    def __init__(self) -> None:
        self.flights: list[tuple[float, float]] = []

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed; it waits for its end."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            found = call(*args, **kwargs)
            self.flights.append((began, time.perf_counter()))
            return found

        return timed

    def hook(self, all_reduce: Callable[..., Any]) -> Callable[..., torch.futures.Future[Tensor]]:
        """DDP's own averaging of a bucket of gradients, timed."""

        def average(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # pyright: ignore[reportPrivateImportUsage]
            began = time.perf_counter()

            def landed(future: torch.futures.Future[Any]) -> Tensor:
                self.flights.append((began, time.perf_counter()))
                return future.value()[0]

            return all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future().then(landed)

        return average

    def seconds(self) -> float:
        """How long at least one was."""
        total, end = 0.0, 0.0
        for began, ended in sorted(self.flights):
            total += max(0.0, ended - max(began, end))
            end = max(end, ended)
        return total


class Loss(nn.Module):
    """What DDP wraps."""

    def __init__(self, sae: SAE):
        super().__init__()
        self.sae = sae
        self.made: list[Step] = []

    def forward(self, x: Tensor) -> Tensor:
        self.made = [self.sae.step(x, x)]
        return self.made[0].loss


class Training:
    """The steps of one process of a group."""

    def __init__(self, side: Side, process: int, model: str, work_name: str):
        work, g = WORKS[work_name], torch.Generator().manual_seed(1)
        directions = F.normalize(torch.randn(work.latents, work.d, generator=g), dim=1)
        batches = [rows(work, g, directions) for _ in range(BATCHES)]
        self.clock, self.sae = Clock(), make(model, work, batches[0], True).sae
        all_reduce = dist.all_reduce
        dist.all_reduce, dist.all_gather = self.clock.around(dist.all_reduce), self.clock.around(dist.all_gather)
        if side.strategy == "shard_latents":
            ranks.divide_latents_(True)
            cut_(self.sae, process, side.processes)
        self.loss = Loss(self.sae)
        self.model: nn.Module = self.loss
        if side.strategy == "ddp":
            batches = [x[process :: side.processes] for x in batches]
            self.model = DistributedDataParallel(self.loss, forward_sync_buffers=False, gradient_as_bucket_view=True)
            self.model.register_comm_hook(None, self.clock.hook(all_reduce))
        self.batches, self.done = batches, 0
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=1e-5, fused=True)

    def turn(self, steps: int) -> Turn:
        self.clock.flights.clear()
        began = time.perf_counter()
        for _ in range(steps):
            self.step(self.batches[self.done % BATCHES])
            self.done += 1
        taken = time.perf_counter() - began
        return Turn(taken, self.clock.seconds(), 4e-6 * 4 * sum(parameter.numel() for parameter in self.sae.parameters()))

    def step(self, x: Tensor) -> None:
        self.model(x).backward()
        (made,) = self.loss.made
        dictionary = self.sae.dictionary
        dictionary.before_step_()
        clip_norm_(self.sae, 1.0)
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            sums = ranks.sum_over_ranks_({"rows": torch.tensor(len(x)), "fires": made.latents.fires(), **made.sums})
        dictionary.after_step_(sums["fires"], sums["rows"])
        self.sae.after_step_(sums)


def serve(told: Connection, side: Side, process: int, port: int, model: str, work: str) -> None:
    """One process of a group: does as many steps as it is told, until it is told to end."""
    torch.set_num_threads(side.threads)
    if side.processes > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=process, world_size=side.processes)
    found = rates(side, WORKS[work])
    training = Training(side, process, model, work)
    training.turn(2)  # what is compiled and allocated once
    told.send(found)
    while (steps := told.recv()) is not None:
        if side.processes > 1:
            dist.barrier()
        told.send(training.turn(steps))
    if side.processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def begun(side: Side, model: str, work: str) -> tuple[list[Connection], costs.Rates]:
    """A group of processes, ready, and the rates of its slowest."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ours, context = [], multiprocessing.get_context("fork")
    for process in range(side.processes):
        own, other = context.Pipe()
        context.Process(target=serve, args=(other, side, process, port, model, work), daemon=True).start()
        ours.append(own)
    every: list[costs.Rates] = [own.recv() for own in ours]
    *speeds, latency = zip(*every, strict=True)
    return ours, costs.Rates(*map(min, speeds), latency=max(latency))


class Measured(NamedTuple):
    """Of a group; `turns`: one figure a round, that of its slowest process."""

    rates: costs.Rates
    turns: list[Turn]


def measure(sides: list[Side], model: str, work: str, steps: int, rounds: int) -> dict[Side, Measured]:
    """By side."""
    groups = {side: begun(side, model, work) for side in sides}
    found = {side: Measured(reached, []) for side, (_, reached) in groups.items()}
    for _ in range(rounds):
        for side, (group, _) in groups.items():
            for process in group:
                process.send(steps)
            found[side].turns.append(max((process.recv() for process in group), key=lambda turn: turn.seconds))
    for group, _ in groups.values():
        for process in group:
            process.send(None)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", choices=trained(), default="topk", help="of conf/model")
    arguments.add_argument("--work", choices=list(WORKS), default="A")
    arguments.add_argument("--size", type=int, nargs=4, metavar=("D", "LATENTS", "ROWS", "K"), help="instead of --work")
    arguments.add_argument("--processes", type=int, nargs="*", default=[2, 4], help="numbers of processes beside one")
    arguments.add_argument("--steps", type=int, default=4, help="of a turn")
    arguments.add_argument("--rounds", type=int, default=7)
    given = arguments.parse_args()
    if given.size:
        d, latents, batch, k = given.size
        given.work = "given"
        WORKS[given.work] = Work(d, latents, batch, k)
    one, work = Side(ALONE, 1), WORKS[given.work]
    sides = [one] + [Side(name, n) for name in ("ddp", "shard_latents") for n in given.processes]
    found = measure(sides, given.model, given.work, given.steps, given.rounds)
    print(f"{given.model}, {given.work}: d {work.d}, {work.latents} latents, {work.batch} rows; {CORES} cores")
    heads = ("processes", "threads each", "rows/s of one", "in collectives", "MB each", "ms a step", "of the formula")
    print(f"{'':16s} {'  '.join(heads)}")
    for side, (reached, turns) in found.items():
        ratio = statistics.median(alone.seconds / turn.seconds for alone, turn in zip(found[one].turns, turns, strict=True))
        share = statistics.median(turn.in_collectives / turn.seconds for turn in turns)
        taken = statistics.median(turn.seconds for turn in turns) / given.steps
        training = costs.Training(work.d, work.latents, work.k, work.batch, side.processes, side.strategy)
        by_formula = costs.step(training, reached).total
        note = f"   more than {CORES} cores" if side.processes > CORES else ""
        figures = (
            side.processes,
            side.threads,
            f"{ratio:.2f}",
            f"{share:.0%}",
            f"{turns[0].mb:.0f}",
            f"{1e3 * taken:.0f}",
            f"{taken / by_formula:.2f}",
        )
        print(f"{side.strategy:16s} {'  '.join(f'{figure!s:>{len(head)}s}' for figure, head in zip(figures, heads, strict=True))}{note}")
        given_rates = reached.products / 1e9, reached.memory / 1e9, reached.gathered / 1e9, reached.link / 1e9, 1e3 * reached.latency
        print("{:16s} rates of a process: {:.0f} Gop/s, {:.1f} and {:.1f} GB/s, {:.2f} GB/s sent, {:.2f} ms".format("", *given_rates))


if __name__ == "__main__":
    main()
