"""ReLU with an L1 penalty (Bricken et al. 2023; the norm-weighted form: Conerly et al. 2024, "Update on how we train SAEs")."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.kernels.squares import squared_error
from sae_lightning.models.auxk import no_revival
from sae_lightning.models.base import SAE, MakeDictionary, Revival, Step, Term

BELOW, ROWS = 2.0, 1024
"""Standard deviations; rows that calibration looks at."""


class ReLU(SAE):
    """f = relu(h);   L = mean ‖y − ŷ‖² + λ mean Σ_j f_j ‖W_dec,j‖ + revival.

    λ rises linearly to `sparsity` over the first `warmup` (a share) of the run. `unit_norm`: decoder rows of norm 1 and the plain
    penalty λ Σ f. Latents start sparse (`calibrate_`): at the same λ it ends as sparse a code or a sparser one, of the same error.
    Errors: InputError for a negative λ or a share outside [0, 1].
    """

    penalty_weight: Float[Tensor, ""]
    steps_done: Int[Tensor, ""]
    warmup_steps: Int[Tensor, ""]
    is_divisible = True

    def __init__(self, dictionary: MakeDictionary, sparsity: float, warmup: float = 0.05, unit_norm: bool = False,
                 revival: Revival | None = None):  # fmt: skip
        super().__init__()
        if sparsity < 0:
            raise InputError(f"model.sparsity is {sparsity}: the weight of the L1 penalty must not be negative")
        if not 0 <= warmup <= 1:
            raise InputError(f"model.warmup is {warmup}: it is a share of the run, between 0 and 1")
        self.dictionary = dictionary(unit_norm=unit_norm, init_norm=1.0 if unit_norm else 0.1)
        self.sparsity, self.warmup, self.revival = sparsity, warmup, revival or no_revival
        self.register_buffer("penalty_weight", torch.tensor(float(sparsity)))
        self.register_buffer("steps_done", torch.tensor(0))
        self.register_buffer("warmup_steps", torch.tensor(0))

    def begin_(self, steps: int) -> None:
        self.warmup_steps.fill_(round(self.warmup * steps))
        self._set_weight_()

    @torch.no_grad()
    def calibrate_(self, x: Tensor) -> None:
        """b_enc starts `BELOW` standard deviations of h below 0, so that one latent in forty fires, and not every second one."""
        self.dictionary.b_enc.sub_(BELOW * self.dictionary.encode(x[:ROWS]).h.std(0))

    def step(self, x: Tensor, y: Tensor) -> Step:
        h = self.dictionary.encode(x)
        f = h.above(0.0).relu()
        used = f.sum_per_latent()
        l1 = self.dictionary.total((used if self.dictionary.unit_norm else used * self.dictionary.norms()).sum()) / len(x)
        y_hat = self.dictionary.decode(f, x)
        loss, e = squared_error(y, y_hat)
        losses = {"reconstruction": Term(loss), "sparsity": Term(l1, self.penalty_weight)}
        return Step(f, y_hat, losses | dict(self.revival(self.dictionary, h, e)))

    @torch.no_grad()
    def after_step_(self, sums: Mapping[str, Tensor]) -> None:
        self.steps_done += 1
        self._set_weight_()

    @torch.no_grad()
    def _set_weight_(self) -> None:
        share = (self.steps_done / self.warmup_steps.clamp(min=1)).clamp(max=1.0)
        self.penalty_weight.copy_(self.sparsity * torch.where(self.warmup_steps > 0, share, 1.0))

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(threshold=torch.zeros_like(self.dictionary.b_enc))
