"""Fine-tuning through the transformer (Karvonen 2025, arXiv:2503.17272)."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sae_lightning import ranks
from sae_lightning.data.batch import Batch
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.models.base import Term
from sae_lightning.transformers.predictions import observed, with_reconstructions

CHUNK = 512
"""Positions whose log-probabilities over the vocabulary are held at once."""
LEAST = 1e-6
"""Nats: what is below is rounding, and is not blown up to the size of the reconstruction loss."""


class FineTune:
    """Trains an SAE also for what the transformer makes of its reconstructions. The transformer itself is frozen.

        KL = mean KL(p ‖ q);   p, q: the transformer's next-token probabilities, as it is and with ŷ in place of y at the hook point
        L  = ½ L_rec + ½ sg(L_rec / KL) · KL + the architecture's other terms

    Both halves weigh the same whatever their units, and together against a penalty on sparsity what L_rec weighed alone. p and q are of
    training sequences (at most `batch_tokens` of them a batch, over all ranks), beside the batch of rows; special positions are neither
    spliced nor counted, as in evaluation. A transcoder's ŷ, made of x, stands at y's hook point, a crosscoder's at all of its own.
    Acts in the last `rows` rows of a run, in whole optimizer steps; None: in all of them. The transformer computes in its own type,
    whatever the precision of training.

    Errors: InputError for numbers that are not positive.
    """

    def __init__(self, rows: int | None = None, batch_tokens: int = 2048):
        if batch_tokens < 1 or (rows is not None and rows < 1):
            raise InputError(f"finetune: rows={rows} and batch_tokens={batch_tokens} must be positive")
        self.rows, self.batch_tokens = rows, batch_tokens
        self.data: RowsDataModule | None = None
        self.model: nn.Module | None = None
        self.sequences = 0

    def check(self, data: RowsDataModule) -> None:
        """Errors: InputError, before anything heavy is done, for rows that come from no transformer."""
        if data.transformer is None:
            raise InputError(
                "model.loss=kl trains through a transformer, and no transformer is given: choose data=sampled_text or another text, "
                "or name the one that made the store, data/transformer=…"
            )

    def begin(self, data: RowsDataModule, device: torch.device) -> None:
        """Loads the transformer. Errors: InputError, as loading, and where the ranks cannot share the sequences of a batch."""
        context = data.tokens_held_out(1)[0].shape[1]
        self.data, self.sequences = data, max(1, self.batch_tokens // context)
        if self.sequences % ranks.count():
            raise InputError(
                f"finetune.batch_tokens={self.batch_tokens} is {self.sequences} sequences of {context} tokens, which {ranks.count()} ranks "
                f"cannot share: choose a multiple of {ranks.count() * context}"
            )
        self.model = data.transformer.load(device)

    def is_on(self, step: int, steps: int, rows_per_step: int) -> bool:
        """Whether it acts in optimizer step number `step` (from 0) of a run of `steps`."""
        return self.rows is None or steps - step <= math.ceil(self.rows / rows_per_step)

    def losses(
        self, losses: Mapping[str, Term], reconstruct: Callable[[Batch], Float[Tensor, "rows d_out"]], index: int
    ) -> dict[str, Term]:
        """The losses of a batch with the term `kl` among them, and half the weight on `reconstruction`.

        losses: an architecture's, of the batch of rows; `reconstruction` is L_rec. reconstruct: raw rows → raw reconstructions of y,
        with gradients. index: number of the batch, of which each rank takes its share.
        """
        assert self.data is not None
        ids, special = self.data.tokens_train(index, self.sequences)
        share = slice(ranks.rank(), None, ranks.count())
        kl = self.kl(ids[share], special[share], reconstruct)
        own = losses["reconstruction"]
        of_all = ranks.mean_over_ranks((own.weight * own.value).detach())
        weight = of_all / kl.detach().clamp(min=LEAST)
        return {**losses, "reconstruction": own._replace(weight=0.5 * own.weight), "kl": Term(kl, 0.5 * weight)}

    def kl(
        self,
        ids: Int[Tensor, "batch context"],
        special: Bool[Tensor, "batch context"],
        reconstruct: Callable[[Batch], Float[Tensor, "rows d_out"]],
    ) -> Float[Tensor, ""]:
        """Mean KL(clean ‖ spliced) in nats, over the counted positions of all ranks; its gradient is that of this rank's share."""
        assert self.data is not None
        assert self.model is not None
        device, hooks = next(self.model.parameters()).device, self.data.hooks
        ids = ids.to(device, non_blocking=True)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            p, rows = observed(self.model, ids, special, [*hooks.x, *hooks.y])
        x, y = (torch.cat([rows[hook] for hook in side], dim=1) for side in hooks)
        y_hat = reconstruct(Batch(x, x if hooks.x == hooks.y else y)).split(self.data.shape.y, dim=1)
        with torch.autocast(device.type, enabled=False):
            q = with_reconstructions(self.model, ids, special, hooks.y, y_hat)
            positions = ranks.mean_over_ranks(torch.tensor(float(len(p)), device=device))
            return ranks.mean_over_ranks(divergence(p, q) / positions.clamp(min=1))


def divergence(p: Float[Tensor, "n vocabulary"], q: Float[Tensor, "n vocabulary"]) -> Float[Tensor, ""]:
    """Σ KL(softmax(p) ‖ softmax(q)) over the positions, in nats. What a chunk of them needs for its gradient is made again for it."""
    total = q.new_zeros((), dtype=torch.promote_types(q.dtype, torch.float32))
    for pair in zip(p.split(CHUNK), q.split(CHUNK), strict=True):
        total = total + checkpoint(_divergence, *pair, use_reentrant=False, preserve_rng_state=False)
    return total


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    exact = torch.promote_types(q.dtype, torch.float32)
    return F.kl_div(q.to(exact).log_softmax(1), p.to(exact).log_softmax(1), reduction="sum", log_target=True)
