"""Gated SAE (Rajamanoharan et al. 2024, arXiv:2404.16014)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.kernels.squares import squared_error
from sae_lightning.latents import Latents
from sae_lightning.models.base import SAE, MakeDictionary, Step, Term


class Gated(SAE):
    """One encoder row says whether a latent is active, and, scaled, how much.

        π = W_enc (x − b_dec) + b_enc          f = ⟦π > 0⟧ relu(e^r (π − b_enc) + b_mag)
        L = mean ‖y − ŷ‖² + λ mean Σ relu(π) + mean ‖y − ỹ‖²,     ỹ = relu(π) · sg(W_dec) + sg(b_dec)

    b_enc is the gate's bias; r and b_mag [d_sae] are the magnitude's. The second reconstruction trains the gate, which the jump in f
    gives no gradient, and not the decoder. Where decoder rows have other norms than 1, relu(π_j) counts times ‖W_dec,j‖.
    Exported as h ⟦h > θ⟧ with h = e^r W_enc (x − b_dec) + b_mag and θ = max(0, b_mag − e^r b_enc): exactly the same function.
    Buffer: `sparsity` λ. Errors: InputError for a negative λ.
    """

    sparsity: Float[Tensor, ""]
    beta1 = 0.0
    is_divisible = True

    def __init__(self, dictionary: MakeDictionary, sparsity: float):
        super().__init__()
        if sparsity < 0:
            raise InputError(f"model.sparsity is {sparsity}: the weight of the gate's L1 penalty must not be negative")
        self.dictionary = dictionary(unit_norm=True)
        self.r_mag = nn.Parameter(torch.zeros(self.dictionary.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.dictionary.d_sae))
        self.register_buffer("sparsity", torch.tensor(float(sparsity)))

    def step(self, x: Tensor, y: Tensor) -> Step:
        d = self.dictionary
        gate = d.encode(x).above(0.0)
        magnitude = gate.at(self.r_mag.exp()) * (gate.values - gate.at(d.b_enc)) + gate.at(self.b_mag)
        f = gate.with_values((gate.values > 0) * magnitude.relu())
        gate = gate.relu()
        used = gate.sum_per_latent()
        l1 = (used if d.unit_norm else used * d.norms()).sum()
        y_hat = d.decode(f, x)
        losses = {
            "reconstruction": Term(squared_error(y, y_hat)[0]),
            "auxiliary": Term(squared_error(y, self._by_gate(gate, x))[0]),
            "sparsity": Term(d.total(l1) / len(x), self.sparsity),
        }
        return Step(f, y_hat, losses)

    def _by_gate(self, gate: Latents, x: Tensor) -> Tensor:
        """ỹ: relu(π) through the decoder as it stands."""
        d = self.dictionary
        y_tilde = d.total(gate.decode(d.W_dec.detach())) + d.b_dec.detach()
        return y_tilde if d.W_skip is None else y_tilde + x @ d.W_skip.detach().T

    @torch.no_grad()
    def after_revival_(self, latents: Int[Tensor, " n"], alive: Bool[Tensor, " d_sae"]) -> None:
        self.r_mag[latents] = 0
        self.b_mag[latents] = 0

    @torch.no_grad()
    def after_start_(self, threshold: Float[Tensor, " d_sae"] | None) -> None:
        self.b_mag.copy_(self.dictionary.b_enc)
        if threshold is not None:
            self.dictionary.b_enc.sub_(threshold)

    @torch.no_grad()
    def to_inference(self) -> InferenceSAE:
        scale = self.r_mag.exp()
        sae = self.dictionary.to_inference(threshold=(self.b_mag - scale * self.dictionary.b_enc).clamp(min=0))
        sae.W_enc.mul_(scale[:, None])
        sae.b_enc.copy_(self.b_mag)
        return sae
