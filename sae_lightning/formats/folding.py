"""The same function, written as another format writes it. What is computed is computed in float64 and rounded once."""

from collections.abc import Mapping

from torch import Tensor

from sae_lightning.inference import InferenceSAE
from sae_lightning.shapes import Float

Weights = dict[str, Tensor]


def weights_of(sae: InferenceSAE) -> Weights:
    """By our names, on the CPU."""
    return {name: weight.detach().cpu() for name, weight in sae.named_buffers()}


def subtracting(sae: InferenceSAE, subtract: bool) -> InferenceSAE:
    """The same function where b_dec is subtracted from x, or not: b_enc ← b_enc ± W_enc b_dec. Itself where it is so already.

    Only where rows in and out have one width.
    """
    if sae.subtract == subtract:
        return sae
    weights = weights_of(sae)
    shift = weights["W_enc"].double() @ weights["b_dec"].double()
    b_enc = weights["b_enc"].double() + (shift if subtract else -shift)
    return InferenceSAE(weights | {"b_enc": b_enc.to(weights["b_enc"].dtype)}, subtract=subtract, k=sae.k, cap=sae.cap, about=sae.about)


def with_unit_decoder(weights: Mapping[str, Tensor]) -> Weights:
    """Latents times n_j = ‖W_dec,j‖: encoder row and b_enc × n_j, decoder row / n_j. One with n_j = 0 stays as it is.

    So the k largest f_j n_j become the k largest latents; a θ is one of f_j n_j.
    """
    n = weights["W_dec"].double().norm(dim=1)
    n = n.where(n > 0, n.new_ones(()))
    made = {"W_enc": weights["W_enc"] * n[:, None], "b_enc": weights["b_enc"] * n, "W_dec": weights["W_dec"] / n[:, None]}
    return dict(weights) | {name: value.to(weights[name].dtype) for name, value in made.items()}


def one_gate(
    W_enc: Float[Tensor, "d_sae d_in"], r_mag: Float[Tensor, " d_sae"], b_gate: Float[Tensor, " d_sae"], b_mag: Float[Tensor, " d_sae"]
) -> Weights:
    """A gated encoder ⟦W_enc x + b_gate > 0⟧ relu(e^r W_enc x + b_mag) as h ⟦h > θ⟧: W_enc e^r, b_mag, θ = max(0, b_mag − e^r b_gate)."""
    scale, gate, magnitude = r_mag.double().exp(), b_gate.double(), b_mag.double()
    threshold = (magnitude - scale * gate).clamp(min=0)
    made = {"W_enc": W_enc.double() * scale[:, None], "b_enc": magnitude, "threshold": threshold}
    return {name: value.to(W_enc.dtype) for name, value in made.items()}
