"""What a transformer loses without some latents."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lightning.callbacks.in_transformer import InTransformer
from sae_lightning.curves import log_values
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.clean import CleanPass
from sae_lightning.evaluation.downstream import compare, read_text
from sae_lightning.inference import InferenceSAE
from sae_lightning.models.base import SAE
from sae_lightning.module import SAEModule


class AblateLatents(InTransformer):
    """Sets named sets of latents to zero in a transformer that goes on with the SAE's reconstructions, in nats:

        ablations/<set>/delta_ce = CE(spliced, f_j = 0 for every j of the set) − CE(spliced)
        ablations/<set>/kl       = mean KL(spliced ‖ spliced without the set)

    `sets`: name → latents. Means over the predicted tokens of at most `max_tokens` of held-out sequences (but one sequence at least),
    `batch_tokens` in a forward pass; special positions are neither spliced nor counted, as in evaluate=downstream. A transcoder's
    reconstruction stands at y's hook point, a crosscoder's at all of its own. At every `every_n_validations`-th validation, on every
    rank. Costs a forward pass for each set and one more. Errors: InputError for sets that are empty or have latents that the SAE
    has not, names of other characters than letters, digits, `_`, `-` and `.`, numbers that are not positive, and rows without a
    transformer.
    """

    name = "ablate_latents"

    def __init__(self, sets: Mapping[str, Any], max_tokens: int = 8192, batch_tokens: int = 2048, every_n_validations: int = 1):
        super().__init__(every_n_validations)
        if max_tokens < 1 or batch_tokens < 1:
            raise InputError(f"callbacks.ablate_latents: max_tokens={max_tokens} and batch_tokens={batch_tokens} must be positive")
        if not sets:
            raise InputError("callbacks.ablate_latents.sets is empty: name latents, callbacks.ablate_latents.sets={rare: [1, 2, 3]}")
        for name, latents in sets.items():
            _check_set(name, latents)
        self.sets: dict[str, list[int]] = {str(name): list(latents) for name, latents in sets.items()}
        self.max_tokens, self.batch_tokens = max_tokens, batch_tokens
        self.clean: CleanPass | None = None

    def check(self, sae: SAE, data: RowsDataModule) -> None:
        super().check(sae, data)
        d_sae = sae.dictionary.d_sae
        for name, latents in self.sets.items():
            if outside := [latent for latent in latents if latent >= d_sae]:
                raise InputError(
                    f"callbacks.ablate_latents.sets.{name}: there is no latent {outside[0]}, this SAE has {d_sae}: choose among 0 to {d_sae - 1}"
                )

    def begin(self, trainer: L.Trainer, data: RowsDataModule) -> None:
        text = read_text(data, trainer.strategy.root_device, self.max_tokens, self.batch_tokens)
        self.clean = CleanPass(text, data.kept_in)

    @torch.no_grad()
    def look(self, trainer: L.Trainer, module: SAEModule) -> None:
        assert self.clean is not None
        sae = module.inference()
        found = compare(self.clean, [without(sae, latents) for latents in self.sets.values()], reference=sae)
        values: dict[str, float] = {}
        for name, (own, _) in zip(self.sets, found, strict=True):
            values |= {f"ablations/{name}/delta_ce": own.ce - own.ce_clean, f"ablations/{name}/kl": own.kl}
        log_values(trainer, values)


def without(sae: InferenceSAE, latents: Sequence[int]) -> Callable[[Float[Tensor, "n d_in"]], Float[Tensor, "n d_out"]]:
    """The reconstruction of rows in which these latents are 0."""
    fixed = sae.fix(dict.fromkeys(latents, 0.0))
    return lambda x: sae.reconstruct(x, sae.encode(x), fixed)


def _check_set(name: object, latents: Any) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", str(name)):
        raise InputError(f"callbacks.ablate_latents.sets: {name!r} is no name for curves: use letters, digits, _, - and .")
    if not isinstance(latents, list) or not latents or not all(type(latent) is int and latent >= 0 for latent in latents):
        raise InputError(
            f"callbacks.ablate_latents.sets.{name} must be a list of one latent or more, by their numbers from 0 on, as [1, 2, 3]; got {latents}"
        )
