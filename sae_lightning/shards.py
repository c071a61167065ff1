"""Dictionaries too large for one device: each process holds a part of the latents, and all see every row.

How it is the same training as in one process, to rounding. Said once, here and in `Dictionary`, `PreActivations` and `ranks`; an
architecture says `dictionary.total` where it sums over latents, and that it does (`SAE.is_divisible`).

    W_enc, W_dec, b_enc, θ, …   axis 0 is cut: process r of R holds latents d_sae·r/R … d_sae·(r + 1)/R − 1, their gradients, the
                                optimizer's moments and the counters of silence. Latent numbers in a step are those within a part
    b_dec, W_skip, buffers of one number   all of it on each; equal, because gradients and sums that reach them are
    rows                        the same batch on each: B·R times the reading of one, nothing of it is sent
    h                           of the latents here: nothing is sent. b_dec enters it through `spread`, which adds up the gradients
    top_k                       each sends its k largest of each row [B, k]; the k-th largest of R·k is what all agree on. Of equal ones
                                the lower processes' are taken, within one what one process would take: the lower latents, where it does
    top_k_of_batch              counts are sent, as over ranks (kernels/batch.py); of equal ones the lower rows', then latents' are taken
    thresholds                  nothing is sent
    ŷ                           Σ over processes of f W_dec [B, d_out], summed forward; backward is the identity, since each has the same loss
    sums over latents in a loss the value is that of all (one number sent), the gradient that of the latents here
    the norm that is clipped    Σ over processes of cut parameters, once of the others
    metrics, callbacks          are given the active entries of all processes, at logged steps and in validation

A step sends B·(d_out + k) numbers per process where k is chosen by row, B·d_out and some counts otherwise; parameters and gradients never.
Every process draws the whole dictionary once, in its own main memory, so that it begins as one process would. Checkpoints and exports are
whole, whatever R was: process 0 collects them in its main memory, a part at a time. What is read is cut again.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sae_lightning import ranks
from sae_lightning.kernels import shards
from sae_lightning.shapes import Bool, Float, Shaped


@dataclass(frozen=True)
class Shards:
    """Which of `d_sae` latents are here: part number `part` of `parts`. With one part every method is the identity.

    With several all processes must call a method together, but for `own` and `cut`.
    """

    d_sae: int
    part: int = 0
    parts: int = 1

    @property
    def own(self) -> slice:
        """The latents that are here."""
        return self._of(self.part)

    def _of(self, part: int) -> slice:
        return slice(self.d_sae * part // self.parts, self.d_sae * (part + 1) // self.parts)

    def cut(self, whole: Shaped[Tensor, "d_sae *rest"]) -> Shaped[Tensor, "here *rest"]:
        """What belongs to the latents here, in memory of its own."""
        return whole[self.own].clone() if self.parts > 1 else whole

    def total(self, here: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum over parts, with the gradient of what is here."""
        return here if self.parts == 1 else shards.sum_over_shards(here)

    def spread(self, shared: Float[Tensor, "*shape"] | None) -> Float[Tensor, "*shape"] | None:
        """What every part has, with the sum of the gradients of all parts."""
        return shared if self.parts == 1 or shared is None else shards.spread_over_shards(shared)

    def largest(self, here: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The largest over parts, without a gradient."""
        return here if self.parts == 1 else ranks.max_over_processes(here)

    def any(self, here: Bool[Tensor, " here"]) -> Bool[Tensor, ""]:
        """Whether it is true of any latent."""
        return here.any() if self.parts == 1 else ranks.max_over_processes(here.any().to(torch.int64)) > 0

    def whole(self, here: Shaped[Tensor, "here *rest"]) -> Shaped[Tensor, "d_sae *rest"]:
        """A tensor of all latents, on each process: for those with few numbers per latent."""
        return here if self.parts == 1 else torch.cat(_of_unequal(here, [self._length(part) for part in range(self.parts)]))

    def collected(self, here: Shaped[Tensor, "here *rest"]) -> Shaped[Tensor, "d_sae *rest"] | None:
        """A tensor of all latents in the main memory of process 0, one part after another; None on the others. Without a gradient."""
        here = here.detach().contiguous()
        if self.parts == 1:
            return here.cpu()
        if self.part > 0:
            dist.send(here, 0)
            return None
        whole = torch.empty((self.d_sae, *here.shape[1:]), dtype=here.dtype)
        whole[self.own] = here.cpu()
        for part in range(1, self.parts):
            received = here.new_empty((self._length(part), *here.shape[1:]))
            dist.recv(received, part)
            whole[self._of(part)] = received.cpu()
        return whole

    def joined(self, here: Shaped[Tensor, " n"]) -> Shaped[Tensor, " m"]:
        """What all parts have, of different lengths, one after another. Without a gradient."""
        return here if self.parts == 1 else torch.cat(_of_unequal(here, _lengths(here)))

    def entries(self, rows: Tensor, latents: Tensor, values: Tensor, d_batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows, latents (numbered within all), values and offsets of the entries of all parts, row by row, latent by latent."""
        lengths = _lengths(rows)
        numbers = latents + self.own.start
        rows, latents, values = (torch.cat(_of_unequal(each, lengths)) for each in (rows, numbers, values))
        order = (rows * self.d_sae + latents).argsort()
        per_row = torch.bincount(rows, minlength=d_batch)
        return rows[order], latents[order], values[order], per_row.cumsum(0) - per_row

    def _length(self, part: int) -> int:
        own = self._of(part)
        return own.stop - own.start


def _lengths(here: Tensor) -> list[int]:
    return [int(length) for length in ranks.of_processes(torch.tensor(len(here), device=here.device))]


def _of_unequal(here: Tensor, lengths: list[int]) -> list[Tensor]:
    """What each process has; they are of different lengths."""
    padded = here.detach().new_zeros((max(lengths), *here.shape[1:]))
    padded[: len(here)] = here.detach()
    return [each[:length] for each, length in zip(ranks.of_processes(padded), lengths, strict=True)]
