"""Nested dictionaries: the first latents must do without those that follow (Bussmann et al. 2025, arXiv:2503.17547)."""

import itertools
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.kernels.prefixes import prefix_errors
from sae_lightning.latents import Latents
from sae_lightning.models.base import Term
from sae_lightning.models.dictionary import Dictionary

GROUPS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
"""Shares of the dictionary, from the first latent on."""


def group_ends(d_sae: int, groups: Sequence[float]) -> list[int]:
    """The latent at which each group ends: round(share · d_sae) latents a group, the last one has what is left.

    Errors: InputError for shares that do not sum to 1, and where a group would be empty.
    """
    if not groups or min(groups) <= 0 or abs(sum(groups) - 1) > 1e-6:
        raise InputError(f"model.groups is {list(groups)}: give positive shares of the dictionary that sum to 1")
    ends = [0]
    for share in groups[:-1]:
        ends.append(ends[-1] + round(share * d_sae))
    ends.append(d_sae)
    sizes = [last - first for first, last in itertools.pairwise(ends)]
    if min(sizes) < 1:
        raise InputError(f"model.groups {list(groups)} of {d_sae} latents are {sizes}: every group needs one; choose a larger dictionary")
    return ends[1:]


def prefix_losses(
    dictionary: Dictionary, f: Latents, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], ends: Sequence[int]
) -> tuple[Float[Tensor, "batch d_out"], Float[Tensor, "batch d_out"], dict[str, Term]]:
    """ŷ and y − ŷ of the whole dictionary, and (1/M) Σ_m mean ‖y − ŷ_m‖² as terms; ŷ_m is of the first m groups: `ends` (`Dictionary.decode_groups`).

    The last prefix is everything: its term is `reconstruction`; the others are `prefix_1`, …
    """
    squares, e = prefix_errors(dictionary.decode_groups(f, ends), y - dictionary.constant(x))[:2]
    names = [*(f"prefix_{m}" for m in range(1, len(ends))), "reconstruction"]
    terms = {name: Term(square / len(y), 1 / len(ends)) for name, square in zip(names, squares.unbind(), strict=True)}
    return y - e, e, terms
