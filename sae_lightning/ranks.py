"""Sums and means over the processes of a run; the identity in a single one.

What the processes divide among themselves is either the rows of a batch (`ranks`: each has other rows, and all of the dictionary) or the
latents of the dictionary (`shards.Shards`: each has all rows). Functions `…_over_ranks` are about rows: where latents are divided there
is one rank, whatever the number of processes. Functions `…_over_processes` are about whatever is divided.
"""

import torch
import torch.distributed as dist
from torch import Tensor

_are_latents_divided = False


def divide_latents_(divided: bool) -> None:
    """Says what the processes of this run divide: latents, or rows (as at the start)."""
    global _are_latents_divided
    _are_latents_divided = divided


def are_latents_divided() -> bool:
    """Whether several processes hold parts of one dictionary."""
    return _are_latents_divided and processes() > 1


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def count() -> int:
    """How many processes divide the rows of a batch."""
    return 1 if _are_latents_divided else processes()


def rank() -> int:
    """Which of them this one is, from 0."""
    return 0 if _are_latents_divided else process()


def mean_over_ranks(local: Tensor) -> Tensor:
    """The mean over ranks as value, with the gradient of `local`: local + sg(mean − local).

    DDP averages gradients, so a loss that is a non-linear function of a batch mean (a square, a relu, a ratio of sums) has the
    gradient of the global batch only where its value is that of the global batch on every rank.
    """
    if count() == 1:
        return local
    mean = local.detach().clone()
    dist.all_reduce(mean)
    return local + (mean / count() - local.detach())


def sum_over_ranks_(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds every tensor up over the ranks, in place."""
    if count() > 1:
        for tensor in sums.values():
            dist.all_reduce(tensor)
    return sums


def sum_over_ranks(local: Tensor) -> Tensor:
    """The sum over the ranks, without a gradient."""
    return local if count() == 1 else sum_over_processes(local)


def sum_over_processes(local: Tensor) -> Tensor:
    """The sum over the processes, without a gradient."""
    return _reduced(local, dist.ReduceOp.SUM)


def min_over_processes(local: Tensor) -> Tensor:
    """The smallest over the processes, without a gradient."""
    return _reduced(local, dist.ReduceOp.MIN)


def max_over_processes(local: Tensor) -> Tensor:
    """The largest over the processes, without a gradient."""
    return _reduced(local, dist.ReduceOp.MAX)


def sum_of_lower_processes(local: Tensor) -> Tensor:
    """The sum over the processes before this one: 0 on the first."""
    if processes() == 1:
        return torch.zeros_like(local)
    return torch.stack([torch.zeros_like(local), *of_processes(local)[: process()]]).sum(0)


def of_processes(local: Tensor) -> list[Tensor]:
    """What each process has, in their order; all have the same shape."""
    if processes() == 1:
        return [local]
    every = [torch.empty_like(local) for _ in range(processes())]
    dist.all_gather(every, local.contiguous())
    return every


def _reduced(local: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
    if processes() == 1:
        return local
    result = local.detach().clone()
    dist.all_reduce(result, how)
    return result


def part() -> None:
    """Ends what the processes of a run do together: each goes on alone. Every one must call it."""
    if processes() > 1:
        dist.barrier()
        dist.destroy_process_group()
