"""An array [batch, d_sae] of which only what matters is stored."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lightning.kernels import reference as kernels
from sae_lightning.kernels.reference import ByLatent, Entries

DENSE_ABOVE = 0.05
"""Share of entries above which the dense form is the cheaper one on a CPU (benchmarks/density.py prints the crossing)."""


class Latents(abc.ABC):
    """Latents (or pre-activations) of a batch, in one of two forms: every value, or a list of entries.

    Code on single entries is written once for both: `values` and `at(w)` broadcast against each other. What is not positive is not
    active: a form may hold more entries than are active, namely all that a gradient must reach (the backward support).
    """

    values: Tensor

    def with_values(self, values: Tensor) -> Self:
        """The same entries with other values."""
        return replace(self, values=values)  # type: ignore[type-var]

    @abc.abstractmethod
    def at(self, per_latent: Float[Tensor, " d_sae"]) -> Tensor:
        """A number per latent, at every stored value."""

    @abc.abstractmethod
    def decode(self, W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "batch d_out"]:
        """Σ_j value_j W_dec[j], row by row."""

    @abc.abstractmethod
    def fires(self) -> Int[Tensor, " d_sae"]:
        """In how many rows each latent is active."""

    @abc.abstractmethod
    def l0_per_row(self) -> Int[Tensor, " batch"]:
        """How many latents are active in each row."""

    @abc.abstractmethod
    def sum_per_latent(self) -> Float[Tensor, " d_sae"]:
        """Σ of a latent's values over the rows."""

    @abc.abstractmethod
    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """Every value, stored or not."""


@dataclass(frozen=True, eq=False)
class Dense(Latents):
    values: Float[Tensor, "batch d_sae"]

    def at(self, per_latent: Tensor) -> Tensor:
        return per_latent

    def decode(self, W_dec: Tensor) -> Tensor:
        return self.values @ W_dec

    def fires(self) -> Tensor:
        return (self.values > 0).sum(0)

    def l0_per_row(self) -> Tensor:
        return (self.values > 0).sum(1)

    def sum_per_latent(self) -> Tensor:
        return self.values.sum(0)

    def dense(self) -> Tensor:
        return self.values


@dataclass(frozen=True, eq=False)
class Sparse(Latents):
    """Entries row by row; `sort` gives the same entries by latent, sorted when a gradient first asks for it."""

    values: Float[Tensor, " n"]
    entries: Entries
    sort: Callable[[], ByLatent] = field(repr=False)

    def at(self, per_latent: Tensor) -> Tensor:
        return per_latent.index_select(0, self.entries.latents)

    def decode(self, W_dec: Tensor) -> Tensor:
        return kernels.Decode.apply(self.values, W_dec, self.entries, self.sort)  # type: ignore[return-value]

    def fires(self) -> Tensor:
        return torch.bincount(self.entries.latents[self.values > 0], minlength=self.entries.d_sae)

    def l0_per_row(self) -> Tensor:
        return torch.bincount(self.entries.rows[self.values > 0], minlength=len(self.entries.offsets))

    def sum_per_latent(self) -> Tensor:
        return kernels.sum_per_latent(self.values, self.entries)

    def dense(self) -> Tensor:
        empty = self.values.new_zeros(len(self.entries.offsets), self.entries.d_sae)
        return empty.index_put((self.entries.rows, self.entries.latents), self.values)


class _Once:
    """Calls a function the first time it is called itself, and remembers. (torch.compile looks through functools.cache.)"""

    def __init__(self, make: Callable[[], ByLatent]):
        self.make, self.made = make, None

    def __call__(self) -> ByLatent:
        if self.made is None:
            self.made = self.make()
        return self.made


@dataclass(frozen=True, eq=False)
class PreActivations:
    """h = x W_encᵀ + b_enc (x already centred), off the tape. What is chosen from it gets its gradient back, and nothing else does.

    Under bf16-mixed h is bfloat16; what is chosen from it is float32, like thresholds and everything compared with them.
    `sparse`: the form of what is chosen; None decides by density.
    """

    h: Float[Tensor, "batch d_sae"]
    x: Float[Tensor, "batch d_in"]
    W_enc: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    sparse: bool | None = None

    @classmethod
    def of(cls, x: Tensor, W_enc: Tensor, b_enc: Tensor, sparse: bool | None = None) -> Self:
        with torch.no_grad():
            h = torch.addmm(b_enc, x, W_enc.T)
        return cls(h, x, W_enc, b_enc, sparse)

    def top_k(self, k: int, among: Bool[Tensor, " d_sae"] | None = None) -> Latents:
        """relu of the k largest h of each row, of the latents in `among` where it is given (fewer than k: the rest is 0)."""
        h = self.h if among is None else self.h.masked_fill(~among, -torch.inf)
        latents = h.topk(k, dim=1, sorted=False).indices
        rows = torch.arange(len(h), device=h.device)
        form = self._choose(rows.repeat_interleave(k), latents.flatten(), rows * k)
        values = form.values.relu()
        return form.with_values(values if among is None else values * form.at(among.to(values.dtype)))

    def above(self, threshold: Float[Tensor, " d_sae"] | float) -> Latents:
        """At least every h over the threshold. What else it holds is for the caller's own function to map to 0."""
        if self.sparse is False:
            return self._all()
        over = self.h > threshold
        per_row = over.sum(1)
        if self.sparse is None and int(per_row.sum()) > DENSE_ABOVE * over.numel():
            return self._all()
        rows, latents = over.nonzero(as_tuple=True)
        return self._choose(rows, latents, per_row.cumsum(0) - per_row)

    def _all(self) -> Dense:
        return Dense(kernels.Attach.apply(self.x, self.W_enc, self.b_enc, self.h))  # type: ignore[arg-type]

    def _choose(self, rows: Tensor, latents: Tensor, offsets: Tensor) -> Latents:
        if self.sparse is False:
            dense = self._all()
            return Dense(dense.values * torch.zeros_like(dense.values).index_put((rows, latents), dense.values.new_ones(())))
        entries = Entries(rows, latents, offsets, self.h.shape[1])
        sort = _Once(lambda: kernels.by_latent(entries))
        values: Tensor = kernels.Pick.apply(self.x, self.W_enc, self.b_enc, self.h, entries, sort)  # type: ignore[assignment]
        return Sparse(values, entries, sort)
