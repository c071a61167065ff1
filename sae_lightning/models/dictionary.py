"""The weights that every architecture shares."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.kernels import ops
from sae_lightning.kernels.squares import row_norms
from sae_lightning.latents import Latents, PreActivations
from sae_lightning.shards import Shards


class Dictionary(nn.Module):
    """`d_sae` latents: an encoder row, a bias and a decoder direction each, and for how many rows it has been silent.

        h = W_enc (x − b_dec) + b_enc            without b_dec where `subtract` is false
        ŷ = f · W_dec + b_dec  (+ W_skip x)

    W_enc [d_sae, d_in], W_dec [d_sae, d_out]: axis 0 of every tensor with one entry per latent, here and in the architectures, is the
    latent. A user chooses `expansion_factor` (d_sae = round(expansion_factor · d_in)) or `d_sae`, `dead_after` (rows of silence after
    which a latent counts as dead; None: min(10 M, max(5 % of the run's rows, 20 batches))) and `sparse` (the form of the latents; None
    decides by density). An architecture chooses `subtract`, `unit_norm` (decoder rows are kept at norm 1) and `init_norm`. Where
    processes divide the latents, `shards` says which are here: tensors hold those alone, and `d_sae` counts all.
    Errors: InputError when both or neither of `expansion_factor` and `d_sae` are given, or one is not positive.
    """

    rows_since_fired: Int[Tensor, " d_sae"]
    dead_after: Int[Tensor, ""]

    def __init__(self, shape: Shape, expansion_factor: float | None = None, d_sae: int | None = None, dead_after: int | None = None,
                 sparse: bool | None = None, *, subtract: bool = True, unit_norm: bool = True, init_norm: float = 1.0):  # fmt: skip
        super().__init__()
        size = _size(shape.d_in, expansion_factor, d_sae)
        if dead_after is not None and dead_after < 1:
            raise InputError(f"dictionary.dead_after is {dead_after}: give a positive number of rows, or null for the default")
        self.shape, self.subtract, self.unit_norm, self.init_norm, self.sparse = shape, subtract, unit_norm, init_norm, sparse
        self.W_dec = nn.Parameter(init_norm * F.normalize(torch.randn(size, shape.d_out), dim=1))
        self.W_enc = nn.Parameter(self._initial_encoder())
        self.b_enc = nn.Parameter(torch.zeros(size))
        self.b_dec = nn.Parameter(torch.zeros(shape.d_out))
        self.W_skip: nn.Parameter | None = None
        self.wanted_dead_after = dead_after
        self.shards = Shards(size)
        self.register_buffer("rows_since_fired", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("dead_after", torch.tensor(dead_after or 10_000_000))

    @property
    def d_sae(self) -> int:
        """How many latents it has, here and elsewhere."""
        return self.shards.d_sae

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Of the latents here."""
        return self.rows_since_fired >= self.dead_after

    def any_dead(self) -> Bool[Tensor, ""]:
        """Whether a latent is dead, here or elsewhere."""
        return self.shards.any(self.dead)

    def total(self, here: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Σ over all latents of what is already summed over those here: what an architecture says of any such sum in its loss."""
        return self.shards.total(here)

    def norms(self) -> Float[Tensor, " d_sae"]:
        """‖W_dec,j‖, summed over hook points."""
        return torch.stack([row_norms(part) for part in self.W_dec.split(self.shape.y, dim=1)]).sum(0)

    def selection_weight(self) -> Float[Tensor, " d_sae"] | None:
        """What the largest latents of a row or a batch are looked for by: f_j times this; None: by f_j itself.

        A stack of hook points has no fixed lengths: there a latent counts by what it adds, f_j Σ_l ‖W_dec,j,l‖. No gradient.
        """
        return None if len(self.shape.y) == 1 else self.norms().detach()

    def encode(self, x: Float[Tensor, "batch d_in"]) -> PreActivations:
        return PreActivations.of(x, self.W_enc, self.b_enc, self.sparse, self.b_dec if self.subtract else None, self.shards)

    def decode(self, latents: Latents, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        y_hat = self.total(latents.decode(self.W_dec)).add_(self.b_dec)
        return y_hat if self.W_skip is None else y_hat + x @ self.W_skip.T

    def decode_groups(self, latents: Latents, ends: Sequence[int]) -> Float[Tensor, "batch groups d_out"]:
        """What each group of latents adds to a row (`Latents.decode_groups`); `ends` are numbers within the whole dictionary."""
        first, here = self.shards.own.start, len(self.b_enc)
        return self.total(latents.decode_groups(self.W_dec, [min(max(end - first, 0), here) for end in ends]))

    def constant(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """ŷ of rows without a latent: b_dec [d_out] (+ W_skip x, [batch, d_out])."""
        return self.b_dec if self.W_skip is None else self.b_dec + x @ self.W_skip.T

    @torch.no_grad()
    def initialise_(self, y: Float[Tensor, "sample d_out"]) -> None:
        """Starts from the middle of the data."""
        self.b_dec.copy_(geometric_median(y))

    @torch.no_grad()
    def begin_(self, rows: int, batch_size: int) -> None:
        """Told how many rows the run has, and how many a batch, and again where it has become longer: what `dead_after` follows where the user gave none."""
        if self.wanted_dead_after is None:
            self.dead_after.fill_(min(10_000_000, max(rows // 20, 20 * batch_size)))

    @torch.no_grad()
    def before_step_(self) -> None:
        """Removes from W_dec's gradient what would only change a direction's length."""
        if self.unit_norm and self.W_dec.grad is not None:
            ops.backend(self.W_dec, self.W_dec.grad).project_(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def after_step_(self, fires: Int[Tensor, " d_sae"], rows: Int[Tensor, ""]) -> None:
        """`fires` and `rows` of the whole optimizer step, over all ranks."""
        if self.unit_norm:
            ops.backend(self.W_dec).normalise_(self.W_dec)
        self.rows_since_fired.add_(rows).mul_(fires == 0)

    @torch.no_grad()
    def revive_(
        self, latents: Int[Tensor, " n"], x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"], encoder_norm: float | None = None
    ) -> None:
        """Points latents at directions of the data: encoder at x, decoder at y.

        `encoder_norm`: of the new encoder rows; None: a fifth of the mean norm of the living ones (of 1 where none lives).
        """
        alive = ~self.dead
        mean_norm = (self.W_enc.norm(dim=1) * alive).sum() / alive.sum() if alive.any() else torch.tensor(1.0)
        self.W_dec[latents] = F.normalize(y, dim=1)
        self.W_enc[latents] = (0.2 * mean_norm if encoder_norm is None else encoder_norm) * F.normalize(x, dim=1)
        self.b_enc[latents] = 0
        self.rows_since_fired[latents] = 0

    def decayed(self) -> list[nn.Parameter]:
        """What weight decay may touch: never W_dec, thresholds or biases."""
        return [self.W_enc] if self.W_skip is None else [self.W_enc, self.W_skip]

    def to_inference(
        self, *, threshold: Float[Tensor, " d_sae"] | None = None, k: int | None = None, cap: float | None = None
    ) -> InferenceSAE:
        """The same function with an activation that looks at one row at a time.

        With `k` and a selection by f_j n_j (`selection_weight`), latents are those products: encoder row and b_enc times n_j, decoder
        row over n_j, so that plain selection finds the same. `threshold` is of f_j: one of f_j n_j is to be divided by n_j before.
        """
        weights = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
        if k is not None and (length := self.selection_weight()) is not None:
            length = length.clamp(min=1e-12)
            weights["W_enc"] *= length[:, None]
            weights["b_enc"] *= length
            weights["W_dec"] /= length[:, None]
        if threshold is not None:
            weights["threshold"] = threshold.detach().clone()
        return InferenceSAE(weights, subtract=self.subtract, k=k, cap=cap)

    def _initial_encoder(self) -> Tensor:
        """Tied to the decoder at the start where rows of x and y have one width, random otherwise."""
        if self.shape.x == self.shape.y:
            return self.W_dec.detach().clone()
        return self.init_norm * F.normalize(torch.randn(len(self.W_dec), self.shape.d_in), dim=1)


def _size(d_in: int, expansion_factor: float | None, d_sae: int | None) -> int:
    if (expansion_factor is None) == (d_sae is None):
        raise InputError(
            "give dictionary.expansion_factor or dictionary.d_sae, and set the other to null: the size of the dictionary is said once"
        )
    size = d_sae if d_sae is not None else round(expansion_factor * d_in)  # type: ignore[operator]
    if size < 1:
        raise InputError(f"the dictionary would have {size} latents: choose a larger dictionary.expansion_factor or dictionary.d_sae")
    return size


def geometric_median(y: Float[Tensor, "sample d"], tolerance: float = 1e-5, most: int = 100) -> Float[Tensor, " d"]:
    """The point with the smallest mean distance to the rows (Weiszfeld's iteration, from the mean)."""
    median = y.mean(0)
    spread = (y - median).norm(dim=1).mean()
    for _ in range(most):
        weight = 1 / (y - median).norm(dim=1, keepdim=True).clamp(min=1e-6 * float(spread) + 1e-30)
        following = (weight * y).sum(0) / weight.sum()
        moved = (following - median).norm()
        median = following
        if moved <= tolerance * spread:
            break
    return median
