"""Whether another training finds the same latents."""

from collections.abc import Sequence

import torch

from sae_lightning.data.rows import RowsDataModule, generator
from sae_lightning.errors import InputError
from sae_lightning.evaluation.recovery import matched
from sae_lightning.evaluation.steps import firing
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import exported, load_sae

ABOVE = 0.7


class Stability:
    """Latents of this SAE matched one to one with those of another one of the same rows, trained with another seed, by their directions.

    The assignment maximises the sum of cosines of decoder rows (Hungarian algorithm); of each SAE its living latents, which fire in
    the first `rows` held-out rows, and of this one at most `latents` of them, drawn at random (time grows with `latents`² times the others').

        stability_mean_cosine = mean over the latents of this SAE (0 for one without a partner)
        stability_above_0.7 = share of them at cos > 0.7 (Paulo & Belrose 2025, "Sparse autoencoders trained on the same data …")
        stability_chance = stability_mean_cosine of as many random directions as the other one has living latents

    Means over `others`: folders of runs or of exported SAEs; one that is this very SAE is left out. No others give {}.
    Errors: InputError for a folder without an SAE, and for one on rows of another width.
    """

    def __init__(self, others: str | list[str] | None = None, rows: int = 65_536, latents: int = 4096):
        if rows < 1 or latents < 1:
            raise InputError(f"evaluate.stability: rows={rows} and latents={latents} must be positive")
        names: Sequence[str] = [others] if isinstance(others, str) else list(others or [])
        self.others = [exported(name) for name in names]
        self.rows, self.latents = rows, latents

    def __call__(self, sae: InferenceSAE, data: RowsDataModule) -> dict[str, float]:
        found = []
        own = sae.W_dec[(firing(sae, data, self.rows).density > 0).to(sae.W_dec.device)].cpu()
        own = own[torch.randperm(len(own), generator=generator(0, "stability"))[: self.latents]]
        for path in self.others:
            other = load_sae(path, sae.b_enc.device).float()
            if other.W_dec.shape == sae.W_dec.shape and bool((other.W_dec == sae.W_dec).all()):
                continue
            if other.W_dec.shape[1] != sae.W_dec.shape[1]:
                raise InputError(
                    f"evaluate.stability.others: {path} gives rows of width {other.W_dec.shape[1]}, this SAE of {sae.W_dec.shape[1]}"
                )
            living = other.W_dec[(firing(other, data, self.rows).density > 0).to(other.W_dec.device)].cpu()
            chance = torch.randn(living.shape, generator=generator(0, "chance"))
            cosines = matched(own, living)
            found.append([cosines.sum(), (cosines > ABOVE).sum(), matched(own, chance).sum()])
        if not found or not len(own):
            return {}
        values = (torch.tensor(found, dtype=torch.float64) / len(own)).mean(0).tolist()
        return dict(zip(("stability_mean_cosine", f"stability_above_{ABOVE}", "stability_chance"), values, strict=True))
