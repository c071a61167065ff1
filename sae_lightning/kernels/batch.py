"""The largest entries of a whole batch, over all processes, whether these divide its rows or its latents. They tell each other counts, never pre-activations.

What lies over a bound that a sample of the batch suggests is looked up in one pass; only among these few is anything ordered. The bound
never changes the result: where too few lie over it, it is lowered.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sae_lightning import ranks
from sae_lightning.shapes import Float, Int

BLOCKS = 64
"""A sample holds one part in so many of every row, of each row another part."""
SAMPLE_FROM = 1 << 16
"""Numbers in a batch from which on a sample says something."""
DIGIT = 11
"""Bits of a float that are counted at a time."""

Above = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor, Tensor] | None]


def top_k_of_batch(
    h: Float[Tensor, "batch d_sae"], n: int, weight: Float[Tensor, " d_sae"] | None, above: Above
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " batch"], Float[Tensor, ""]]:
    """Where h · weight is positive and among the n largest of all processes: values of h, rows, latents, offsets; and the smallest h · weight of them.

    Of equal ones those of lower rows and latents are taken; where rows are divided, those of lower ranks first. A NaN counts as largest.
    Where nothing is positive the smallest is 0.
    `above` is the backend's.
    """
    kind = torch.promote_types(h.dtype, torch.float32)
    share = n / ranks.processes()
    for margin in (1.05, 2.0, math.inf):
        bound = ranks.min_over_processes(_bound(h, weight, share, margin).to(kind))
        chosen = above(h, _thresholds(bound, h, weight), h.numel())
        assert chosen is not None
        keys = chosen[0].to(kind) if weight is None else chosen[0].to(kind) * weight[chosen[2]].to(kind)
        keys = torch.where(keys.isnan(), torch.inf, keys)
        total = int(ranks.sum_over_processes((keys > bound).sum()))
        if total >= n or bound == 0:
            break
    if total <= n:
        smallest = ranks.min_over_processes(torch.cat([keys[keys > 0], keys.new_full((1,), torch.inf)]).amin())
        return *_those(chosen, keys > 0, len(h)), torch.where(smallest.isinf() & (total == 0), 0.0, smallest)
    smallest, ties, equal = nth_largest(keys, n)
    keep = keys >= smallest
    if ties < equal:
        tied = keys == smallest
        keep &= ~tied | (_numbers(tied, chosen[1], len(h)) <= ties)
    return *_those(chosen, keep, len(h)), smallest


def _numbers(tied: Tensor, rows: Tensor, batch: int) -> Tensor:
    """The place of each entry that is tied, from 1 on, among those of all processes."""
    own = tied.cumsum(0)
    if not ranks.are_latents_divided():
        return own + ranks.sum_of_lower_processes(tied.sum())
    here = torch.zeros(batch, dtype=own.dtype, device=own.device).index_add(0, rows, tied.to(own.dtype))
    lower, every = ranks.sum_of_lower_processes(here), ranks.sum_over_processes(here)
    earlier_rows = (every.cumsum(0) - every) - (here.cumsum(0) - here)
    return own + (earlier_rows + lower).index_select(0, rows)


def nth_largest(keys: Float[Tensor, " m"], n: int) -> tuple[Float[Tensor, ""], int, int]:
    """The n-th largest of positive numbers over all processes (which hold at least n); how many equal to it are among the n, and in all.

    Positive floats are ordered like the integers of the same bits: their digits are found one after another, from counts.
    """
    bits = keys.view({4: torch.int32, 8: torch.int64}[keys.element_size()])
    found, equal = 0, 0
    for shift in range(8 * keys.element_size() // DIGIT * DIGIT, -1, -DIGIT):
        digits = bits >> shift
        counts = ranks.sum_over_processes(torch.bincount(digits, minlength=1 << DIGIT))
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit = int((at_least >= n).sum()) - 1
        equal = int(counts[digit])
        n -= int(at_least[digit]) - equal
        bits = bits[digits == digit] & ((1 << shift) - 1)
        found |= digit << shift
    return torch.tensor(found, dtype=bits.dtype).view(keys.dtype).to(keys.device), n, equal


def _bound(h: Tensor, weight: Tensor | None, n: float, margin: float) -> Tensor:
    """What a few more than n numbers of this process's h · weight probably exceed; never negative."""
    width = h.shape[1] // BLOCKS
    rows = torch.arange(len(h), device=h.device)
    wanted = n * width / max(h.shape[1], 1)
    place = margin * (wanted + 5 * math.sqrt(wanted)) + 4
    if h.numel() < SAMPLE_FROM or width == 0 or not place < len(h) * width:
        return h.new_zeros(())
    sample = h[:, : width * BLOCKS].unflatten(1, (BLOCKS, width))[rows, rows % BLOCKS]
    if weight is not None:
        sample = sample * weight[: width * BLOCKS].unflatten(0, (BLOCKS, width))[rows % BLOCKS]
    least = sample.flatten().topk(math.ceil(place), sorted=False).values.amin()
    return torch.where(least > 0, least, 0.0)


def _thresholds(bound: Tensor, h: Tensor, weight: Tensor | None) -> Float[Tensor, " d_sae"]:
    """What h must exceed per latent, at most, for h · weight to exceed the bound, whatever the rounding."""
    if weight is None:
        return bound.expand(h.shape[1]).contiguous()
    low = bound * (1 - 8 * torch.finfo(bound.dtype).eps)
    return torch.where(weight > 0, low / weight, torch.inf).to(bound.dtype)


def _those(chosen: tuple[Tensor, ...], keep: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, rows, latents, offsets = chosen
    at = keep.nonzero()[:, 0]
    rows = rows.index_select(0, at)
    per_row = torch.bincount(rows, minlength=batch)
    return values.index_select(0, at), rows, latents.index_select(0, at), (per_row.cumsum(0) - per_row).to(offsets.dtype)
