"""Crosscoders: one latent code for several hook points (Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features")."""

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.models.dictionary import Dictionary


def crosscoder(shape: Shape, expansion_factor: float | None = None, d_sae: int | None = None, dead_after: int | None = None,
               sparse: bool | None = None, *, subtract: bool = True, unit_norm: bool = True,
               init_norm: float = 1.0) -> Dictionary:  # fmt: skip
    """A `Dictionary` of rows x = (x_1, …, x_L), the L hook points side by side; every weight has one block per hook point.

        h = Σ_l W_enc,l x_l + b_enc
        x̂_l = f · W_dec,l + b_dec,l

    A reconstruction loss over whole rows is summed over hook points. What a latent weighs, in a penalty and where the largest are
    looked for, is Σ_l ‖W_dec,j,l‖ (`norms`): so its length is free and b_dec is not subtracted, whatever `subtract` and `unit_norm`
    say. The rest: `Dictionary`; d_in, which `expansion_factor` multiplies, is of all hook points together.
    Errors: InputError, its own, for a single hook point, and for hook points of different widths.
    """
    if len(shape.x) < 2 or shape.x != shape.y:
        raise InputError("a crosscoder needs several hook points side by side, these rows have one: name two or more in data.hooks")
    if len(set(shape.x)) > 1:
        raise InputError(
            f"a crosscoder's hook points have one width, these have {', '.join(map(str, shape.x))}: choose others in data.hooks"
        )
    return Dictionary(shape, expansion_factor, d_sae, dead_after, sparse, subtract=False, unit_norm=False, init_norm=init_norm)
