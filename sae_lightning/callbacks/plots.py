"""What validation shows, as pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sae_lightning.callbacks.frequency import check_period, is_due
from sae_lightning.callbacks.images import log_image
from sae_lightning.data.batch import Batch
from sae_lightning.models.base import Step
from sae_lightning.module import SAEModule
from sae_lightning.ranks import sum_over_ranks_
from sae_lightning.report import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 4096
"""Latents whose weights are looked at together."""


class Plots(L.Callback):
    """Five figures of a validation, over all its rows and ranks.

        validation_density          density_j = share of the rows in which latent j fires
        l0_per_row                  active latents of each row
        density_against_activation  density_j against Σ f_j / number of f_j > 0, of the latents that fired
        decoder_encoder_cosine      cos(W_enc[j], W_dec[j]); not drawn where x and y differ in width, as a transcoder's may
        latent_norms                ‖W_enc[j]‖ and ‖W_dec[j]‖

    <run>/plots/<name>.png is of the latest validation; loggers that take images get each one as plots/<name>. Latents and norms are in
    raw space; cosines are of rows with E‖x‖² = 1, which only for a crosscoder is not the same. Drawn are validations at multiples of
    `every_n_steps` optimizer steps (None: all) and the last one, not Lightning's sanity check. Training steps are not touched. What is
    counted takes 24 bytes a latent however many rows there are, and of more than 10 000 latents that fired each n-th is a point.
    Errors: InputError for a period below 1.
    """

    def __init__(self, every_n_steps: int | None = None):
        self.period = check_period(every_n_steps, "plots")
        self.sums: dict[str, Tensor] = {}
        """Over the validation: `fires` and `activation` (Σ f) of each latent, `rows_with` 0, 1, … d_sae active latents."""
        self.weights: list[Tensor] = []
        """Norms and cosines of the latents at its end."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        d_sae, device = pl_module.sae.dictionary.d_sae, pl_module.device
        self.sums = {
            "fires": torch.zeros(d_sae, dtype=torch.int64, device=device),
            "activation": torch.zeros(d_sae, dtype=torch.float64, device=device),
            "rows_with": torch.zeros(d_sae + 1, dtype=torch.int64, device=device),
        }

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: SAEModule, outputs: Step, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._is_due(trainer):
            return
        latents = outputs.latents
        self.sums["fires"] += latents.fires()
        self.sums["activation"] += latents.relu().sum_per_latent()
        self.sums["rows_with"] += latents.l0_per_row().bincount(minlength=len(self.sums["rows_with"]))

    def on_validation_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        if not self._is_due(trainer):
            return
        sum_over_ranks_(self.sums)
        self.weights = _of_weights(pl_module)
        if not trainer.is_global_zero:
            return
        for name, figure in self.figures(pl_module, trainer.global_step):
            picture = Path(trainer.default_root_dir) / "plots" / f"{name}.png"
            plots.write(figure, picture)
            for logger in trainer.loggers:
                log_image(logger, f"plots/{name}", picture, trainer.global_step)

    def figures(self, module: SAEModule, step: int) -> Iterator[tuple[str, "Figure"]]:
        """By name, of what has been counted and of the weights as they are now. `step`: stands in the titles."""
        fires, activation, rows_with = (self.sums[name].cpu() for name in ("fires", "activation", "rows_with"))
        density, at = fires / rows_with.sum(), f"step {step}"
        yield "validation_density", plots.density(density, f"how often latents fire in validation, {at}")
        yield "l0_per_row", plots.l0_counts(rows_with, f"active latents per row in validation, {at}")
        mean = (activation / fires.clamp(min=1)).float()
        title = f"how often and how strongly latents fire in validation, {at}"
        yield "density_against_activation", plots.density_against_activation(density, mean, title)
        encoder, decoder, *cosine = self.weights
        if cosine:
            yield "decoder_encoder_cosine", plots.decoder_encoder_cosine(cosine[0], f"encoder and decoder directions, {at}")
        yield "latent_norms", plots.latent_norms(encoder, decoder, f"norms of encoder and decoder directions, {at}")

    def _is_due(self, trainer: L.Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        return trainer.global_step == trainer.max_steps or is_due(self.period or 1, trainer, trainer.global_step)


@torch.no_grad()
def _of_weights(module: SAEModule) -> list[Tensor]:
    """Norms of encoder and of decoder rows in raw space, and their cosines where both have one width. Every process must call it."""
    dictionary = module.sae.dictionary
    W_enc, W_dec = dictionary.W_enc.detach(), dictionary.W_dec.detach()
    found = [_norms(W_enc, module.unit / module.s_in), _norms(W_dec, module.s_out / module.unit)]
    if W_enc.shape == W_dec.shape:
        found.append(torch.cat([cosine_similarity(*pair) for pair in zip(W_enc.split(BLOCK), W_dec.split(BLOCK), strict=True)]))
    return [dictionary.shards.whole(each) for each in found]


def _norms(weights: Tensor, scale: Tensor) -> Tensor:
    """Of the rows of weights · scale."""
    return torch.cat([(part * scale).norm(dim=1) for part in weights.split(BLOCK)])
