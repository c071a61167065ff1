"""What processes that divide the latents of a dictionary tell each other in a step; opaque to torch.compile, with gradients."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from sae_lightning import ranks
from sae_lightning.kernels import ops
from sae_lightning.kernels.ops import Chosen


@torch.library.custom_op("sae_lightning::sum_over_shards", mutates_args=())
def sum_over_shards(here: Tensor) -> Tensor:
    """The sum over the processes. Each makes the same loss of it, whose gradient is therefore that of what is here."""
    return ranks.sum_over_processes(here).clone()


@torch.library.custom_op("sae_lightning::spread_over_shards", mutates_args=())
def spread_over_shards(shared: Tensor) -> Tensor:
    """What all processes have, for latents that each has of its own: the gradient is the sum of what comes back to each."""
    return shared.clone()


sum_over_shards.register_fake(lambda here: torch.empty_like(here))
spread_over_shards.register_fake(lambda shared: torch.empty_like(shared))
sum_over_shards.register_autograd(lambda ctx, grad: grad)
spread_over_shards.register_autograd(lambda ctx, grad: sum_over_shards(grad))


@torch.library.custom_op("sae_lightning::top_k_of_shards", mutates_args=())
def top_k_of_shards(h: Tensor, k: int, among: Tensor | None, weight: Tensor | None) -> Chosen:
    """Of the latents here those with the k largest positive h · weight of a row among the latents of all processes (`among`: of these).

    Of equal ones those of lower processes are taken. Each process tells the others its k largest of each row.
    """
    ids = None if among is None else among.nonzero().flatten()
    if ids is not None:
        h, weight = h.index_select(1, ids), None if weight is None else weight[ids]
    keys, latents = ops.top_k(h if weight is None else h * weight, min(k, h.shape[1]))
    keep = _are_largest(keys, k)
    per_row = keep.sum(1)
    rows, places = keep.nonzero(as_tuple=True)
    latents = latents[rows, places]
    values = h[rows, latents]
    return values, rows, latents if ids is None else ids[latents], per_row.cumsum(0) - per_row


top_k_of_shards.register_fake(lambda h, k, among, weight: ops._fake_chosen(h))


def _are_largest(keys: Tensor, k: int) -> Tensor:
    """Which of these [batch, ≤ k] are positive and among the k largest of their row over all processes."""
    sent = pad(keys, (0, k - keys.shape[1])).to(torch.promote_types(keys.dtype, torch.float32))  # gloo knows no bfloat16
    every = torch.cat(ranks.of_processes(sent), 1)
    largest = every.sort(dim=1, descending=True, stable=True).indices[:, :k]
    keep = torch.zeros_like(every, dtype=torch.bool).scatter_(1, largest, True)
    first = ranks.process() * k
    return keep[:, first : first + keys.shape[1]] & (keys > 0)
