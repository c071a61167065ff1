"""Sums and means over the ranks of a run; the identity in a single process."""

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


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
    return _reduced(local, dist.ReduceOp.SUM)


def min_over_ranks(local: Tensor) -> Tensor:
    """The smallest over the ranks, without a gradient."""
    return _reduced(local, dist.ReduceOp.MIN)


def sum_of_lower_ranks(local: Tensor) -> Tensor:
    """The sum over the ranks before this one: 0 on the first."""
    if count() == 1:
        return torch.zeros_like(local)
    every = [torch.empty_like(local) for _ in range(count())]
    dist.all_gather(every, local)
    return torch.stack([torch.zeros_like(local), *every[: rank()]]).sum(0)


def _reduced(local: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
    if count() == 1:
        return local
    result = local.detach().clone()
    dist.all_reduce(result, how)
    return result


def part() -> None:
    """Ends what the processes of a run do together: each goes on alone. Every rank must call it."""
    if count() > 1:
        dist.barrier()
        dist.destroy_process_group()
