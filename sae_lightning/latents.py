"""An array [batch, d_sae] of which only what matters is stored."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sae_lightning.kernels import dense, ops, shards
from sae_lightning.kernels.reference import ByLatent, Entries, sum_per_latent
from sae_lightning.kernels.residual import unexplained
from sae_lightning.shapes import Bool, Float, Int
from sae_lightning.shards import Shards


class Latents(abc.ABC):
    """Latents (or pre-activations) of a batch, in one of two forms: every value, or a list of entries.

    Code on single entries is written once for both: `values` and `at(w)` broadcast against each other. What is not positive is not
    active: a form may hold more entries than are active, namely all that a gradient must reach (the backward support).
    """

    values: Tensor

    def with_values(self, values: Tensor) -> Self:
        """The same entries with other values."""
        return replace(self, values=values)  # type: ignore[type-var]

    def relu(self) -> Self:
        """The same entries, 0 in place of what is negative."""
        return self.with_values(self.values.relu())

    @abc.abstractmethod
    def at(self, per_latent: Float[Tensor, " d_sae"]) -> Tensor:
        """A number per latent, at every stored value."""

    @abc.abstractmethod
    def decode(self, W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "*batch d_out"]:
        """Σ_j value_j W_dec[j], row by row."""

    def decode_groups(self, W_dec: Float[Tensor, "d_sae d_out"], ends: Sequence[int]) -> Float[Tensor, "*batch groups d_out"]:
        """What each group of latents adds to a row: Σ_j value_j W_dec[j] over ends[i − 1] ≤ j < ends[i]; the last end is d_sae.

        Entries must stand in the order of their latents within a row, as `above` and `top_k_of_batch` give them.
        """
        group = _groups(ends, torch.arange(len(W_dec), device=W_dec.device))
        return torch.stack([self.with_values(self.values * self.at(group == i)).decode(W_dec) for i in range(len(ends))], 1)

    @abc.abstractmethod
    def fires(self) -> Int[Tensor, " d_sae"]:
        """In how many rows each latent is active."""

    @abc.abstractmethod
    def l0_per_row(self) -> Int[Tensor, "*batch"]:
        """How many latents are active in each row."""

    @abc.abstractmethod
    def sum_per_latent(self) -> Float[Tensor, " d_sae"]:
        """Σ of a latent's values over the rows."""

    @abc.abstractmethod
    def dense(self) -> Float[Tensor, "*batch d_sae"]:
        """Every value, stored or not."""

    def active(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Row, latent and value of all that is active, row by row."""
        values = self.dense()
        rows, latents = (values > 0).nonzero(as_tuple=True)
        return rows, latents, values[rows, latents]


@dataclass(frozen=True, eq=False)
class Dense(Latents):
    values: Float[Tensor, "batch d_sae"]

    def relu(self) -> Self:
        return self.with_values(dense.relu(self.values))

    def at(self, per_latent: Tensor) -> Tensor:
        return per_latent

    def decode(self, W_dec: Tensor) -> Tensor:
        return dense.product(self.values, W_dec)

    def decode_groups(self, W_dec: Tensor, ends: Sequence[int]) -> Tensor:
        return torch.stack([self.values[:, a:b] @ W_dec[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)], 1)

    def fires(self) -> Tensor:
        return dense.positive(self.values)[0]

    def l0_per_row(self) -> Tensor:
        return dense.positive(self.values)[1]

    def sum_per_latent(self) -> Tensor:
        return self.values.sum(0)

    def dense(self) -> Tensor:
        return self.values


@dataclass(frozen=True, eq=False)
class Sparse(Latents):
    """Entries row by row; `by_latent` are the same ones sorted by latent, where a gradient will ask for them."""

    values: Float[Tensor, " n"]
    entries: Entries
    by_latent: ByLatent | None = None

    def at(self, per_latent: Tensor) -> Tensor:
        return per_latent.index_select(0, self.entries.latents)

    def decode(self, W_dec: Tensor) -> Tensor:
        rows, latents, offsets, d_sae = self.entries
        if not torch.is_grad_enabled():
            return ops.sum_by_row(self.values, W_dec, rows, latents, offsets)
        return ops.decode(self.values, W_dec, rows, latents, offsets, *(self.by_latent or ops.by_latent(rows, latents, offsets, d_sae)))

    def decode_groups(self, W_dec: Tensor, ends: Sequence[int]) -> Tensor:
        """A row's entries of one group stand together: each is a row of its own."""
        rows, latents, offsets, d_sae = self.entries
        parts = rows * len(ends) + _groups(ends, latents).to(rows.dtype)
        per_part = sum_per_latent(torch.ones_like(parts), parts, len(offsets) * len(ends))
        by_latent = self.by_latent and self.by_latent._replace(rows=parts.index_select(0, self.by_latent.order))
        whole = Sparse(self.values, Entries(parts, latents, per_part.cumsum(0).to(offsets.dtype) - per_part, d_sae), by_latent)
        return whole.decode(W_dec).unflatten(0, (len(offsets), len(ends)))

    def fires(self) -> Tensor:
        return sum_per_latent((self.values > 0).long(), self.entries.latents, self.entries.d_sae)

    def l0_per_row(self) -> Tensor:
        return sum_per_latent((self.values > 0).long(), self.entries.rows, len(self.entries.offsets))

    def sum_per_latent(self) -> Tensor:
        return sum_per_latent(self.values, self.entries.latents, self.entries.d_sae)

    def dense(self) -> Tensor:
        empty = self.values.new_zeros(len(self.entries.offsets), self.entries.d_sae)
        return empty.index_put((self.entries.rows, self.entries.latents), self.values)

    def active(self) -> tuple[Tensor, Tensor, Tensor]:
        at = (self.values > 0).nonzero()[:, 0]
        return self.entries.rows[at], self.entries.latents[at], self.values[at]


@dataclass(frozen=True, eq=False)
class Subset(Latents):
    """Every value of a few latents, by their numbers; the others are 0."""

    values: Float[Tensor, "batch n"]
    latents: Int[Tensor, " n"]
    d_sae: int

    def at(self, per_latent: Tensor) -> Tensor:
        return per_latent.index_select(0, self.latents)

    def decode(self, W_dec: Tensor) -> Tensor:
        return self.values @ ops.take_rows(W_dec, self.latents)

    def fires(self) -> Tensor:
        return sum_per_latent((self.values > 0).sum(0), self.latents, self.d_sae)

    def l0_per_row(self) -> Tensor:
        return (self.values > 0).sum(1)

    def sum_per_latent(self) -> Tensor:
        return sum_per_latent(self.values.sum(0), self.latents, self.d_sae)

    def dense(self) -> Tensor:
        return self.values.new_zeros(len(self.values), self.d_sae).index_copy(1, self.latents, self.values)


@dataclass(frozen=True, eq=False)
class Shaped(Latents):
    """Latents of rows that stand in other than one axis, [*leading, d_sae]: `rows` are the same, one after another.

    `active` numbers them so.
    """

    rows: Latents
    leading: tuple[int, ...]

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        return self.rows.values

    def with_values(self, values: Tensor) -> Self:
        return replace(self, rows=self.rows.with_values(values))

    def at(self, per_latent: Tensor) -> Tensor:
        return self.rows.at(per_latent)

    def decode(self, W_dec: Tensor) -> Tensor:
        return self._shaped(self.rows.decode(W_dec))

    def decode_groups(self, W_dec: Tensor, ends: Sequence[int]) -> Tensor:
        return self._shaped(self.rows.decode_groups(W_dec, ends))

    def fires(self) -> Tensor:
        return self.rows.fires()

    def l0_per_row(self) -> Tensor:
        return self._shaped(self.rows.l0_per_row())

    def sum_per_latent(self) -> Tensor:
        return self.rows.sum_per_latent()

    def dense(self) -> Tensor:
        return self._shaped(self.rows.dense())

    def active(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.rows.active()

    def _shaped(self, per_row: Tensor) -> Tensor:
        return per_row.view((*self.leading, *per_row.shape[1:]))


def of_all_parts(latents: Latents, parts: Shards) -> Latents:
    """What is active in all parts of a dictionary, without a gradient; the same latents where there is one part."""
    if parts.parts == 1:
        return latents
    at = latents.active()
    rows, numbers, values, offsets = parts.entries(*at, len(latents.l0_per_row()))
    return Sparse(values, Entries(rows, numbers, offsets, parts.d_sae))


def _groups(ends: Sequence[int], latents: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Which group each latent is in."""
    return torch.searchsorted(torch.tensor(ends, device=latents.device, dtype=latents.dtype), latents, right=True)


@dataclass(frozen=True, eq=False)
class PreActivations:
    """h = (x − b_dec) W_encᵀ + b_enc, off the tape. What is chosen from it gets its gradient back, and nothing else does.

    Under bf16-mixed h is bfloat16; what is chosen from it is float32, like thresholds and everything compared with them.
    `centred` is x − b_dec. `sparse`: the form of what is chosen; None decides by density (under torch.compile, which cannot look at
    the data: sparse). `shards`: of how many latents these are a part; None: they are all.
    """

    h: Float[Tensor, "batch d_sae"]
    x: Float[Tensor, "batch d_in"]
    b_dec: Float[Tensor, " d_in"] | None
    W_enc: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    centred: Float[Tensor, "batch d_in"]
    sparse: bool | None = None
    shards: Shards | None = None

    @classmethod
    def of(cls, x: Tensor, W_enc: Tensor, b_enc: Tensor, sparse: bool | None = None, b_dec: Tensor | None = None,
           shards: Shards | None = None) -> Self:  # fmt: skip
        with torch.no_grad():
            centred = x.detach() if b_dec is None else ops.centred(x, b_dec)
            inputs = centred, W_enc, b_enc
            if torch.is_autocast_enabled(x.device.type):
                inputs = [tensor.to(torch.get_autocast_dtype(x.device.type)) for tensor in inputs]
            h = ops.encode(*inputs)
        b_dec = b_dec if shards is None else shards.spread(b_dec)
        return cls(h, x, b_dec, W_enc, b_enc, centred, sparse, shards)

    @property
    def is_part(self) -> bool:
        """Whether other processes hold other latents of the same rows."""
        return self.shards is not None and self.shards.parts > 1

    def top_k(self, k: int, among: Bool[Tensor, " d_sae"] | None = None, weight: Float[Tensor, " d_sae"] | None = None) -> Latents:
        """relu of the k largest h of each row, of the latents in `among` where it is given (fewer than k: all of those).

        `weight`: those with the k largest h · weight, which is positive.
        """
        if self.is_part:
            return self._choose(*shards.top_k_of_shards(self.h, k, among, weight)).relu()
        if among is not None:
            f = self._choose(*ops.top_k_among(self.h, k, among))
            return f.relu()
        values, latents = ops.top_k(self.h if weight is None else self.h * weight, k)
        if weight is not None:
            values = self.h.gather(1, latents) * (values > 0)
        rows = torch.arange(len(values), device=values.device)
        f = self._choose(values.flatten(), rows.repeat_interleave(k), latents.flatten(), rows * k)
        return f.relu()

    def top_k_of_batch(self, n: int | Int[Tensor, ""], weight: Float[Tensor, " d_sae"] | None = None) -> tuple[Latents, Float[Tensor, ""]]:
        """The n ≥ 1 largest positive h of the batch, over all ranks; and the smallest of them (0 where nothing is positive).

        `weight`: those with the n largest h · weight, which is not negative; and the smallest of these products.
        """
        n = torch.as_tensor(n, device=self.h.device)
        *chosen, smallest = ops.top_k_of_batch(self.h, n, None if weight is None else weight.detach())
        return self._choose(*chosen), smallest

    def unexplained(
        self, residual: Float[Tensor, "batch d_out"], W_dec: Float[Tensor, "d_sae d_out"], k: int, among: Bool[Tensor, " d_sae"]
    ) -> Float[Tensor, ""]:
        """Σ‖residual − ê‖² over the batch, where ê decodes `top_k(k, among)`; the residual is a constant."""
        if self.shards is not None and self.is_part:
            return (residual - self.shards.total(self.top_k(k, among).decode(W_dec))).square().sum()
        if self.sparse is None and not (self.h.is_cuda or self.x.requires_grad or torch.compiler.is_compiling()):
            latents = among.nonzero().flatten()
            if k >= ops.DENSE_ABOVE * len(latents):
                made_of = self.centred, self.W_enc, self.b_enc, self.b_dec
                return unexplained(self.h, latents, min(k, len(latents)), residual, *made_of, W_dec)
        return (residual - self.top_k(k, among).decode(W_dec)).square().sum()

    def above(self, threshold: Float[Tensor, " d_sae"] | float) -> Latents:
        """At least every h over the threshold. What else it holds is for the caller's own function to map to 0."""
        if self.sparse is False:
            return self._all()
        if not isinstance(threshold, Tensor):
            threshold = torch.full_like(self.b_enc, threshold)
        threshold = threshold.detach()
        if self.sparse or torch.compiler.is_compiling():
            return self._choose(*ops.above(self.h, threshold))
        chosen = ops.backend(self.h, threshold).above(self.h, threshold, int(ops.DENSE_ABOVE * self.h.numel()))
        return self._all() if chosen is None else self._choose(*chosen)

    def all_of(self, latents: Bool[Tensor, " d_sae"]) -> Latents:
        """Every h of these latents, whatever its sign; as many values in each row."""
        if self.sparse or self.h.is_cuda or torch.compiler.is_compiling():
            return self._choose(*ops.all_of(self.h, latents))
        ids = latents.nonzero().flatten()
        few = replace(self, h=self.h.index_select(1, ids), W_enc=ops.take_rows(self.W_enc, ids), b_enc=ops.take_rows(self.b_enc, ids))
        return Subset(few._all().values, ids, self.h.shape[1])

    def _all(self) -> Dense:
        return Dense(ops.Attach.apply(self.x, self.b_dec, self.W_enc, self.b_enc, self.centred, self.h))  # type: ignore[arg-type]

    def _choose(self, chosen: Tensor, rows: Tensor, latents: Tensor, offsets: Tensor) -> Latents:
        if self.sparse is False:
            dense = self._all()
            return Dense(dense.values * torch.zeros_like(dense.values).index_put((rows, latents), dense.values.new_ones(())))
        entries = Entries(rows, latents, offsets, self.h.shape[1])
        if not torch.is_grad_enabled():
            return Sparse(chosen.to(self.b_enc.dtype), entries)
        by_latent = ByLatent(*ops.by_latent(*entries))
        made_of = self.x, self.b_dec, self.W_enc, self.b_enc, self.centred
        return Sparse(ops.pick(*made_of, chosen, rows, latents, offsets, *by_latent), entries, by_latent)
